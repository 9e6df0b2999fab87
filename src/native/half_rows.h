// Rows of 16-bit floats, computed as float32, a chunk at a time: a whole row is never held.
//
// Their results need 12 bits or so: powers have a shorter polynomial and no tails, sums are of floats within a block.
#pragma once
#include "half.h"
#include "short_rows.h"

namespace {

template <>
struct Format<Float16> {
    // (2^r - 1) / r on [-1/2, 1/2]: relative error of 1 + r q(r) below 3.5 * 2^-24
    static constexpr double q[] = {0.6931471805599453, 0.2402234891717728, 0.05550381001841135, 0.00966637818445551,
                                   0.001338131210261626};
};
template <>
struct Format<BFloat16> : Format<Float16> {};

// The sum of e, in 16 lanes.
inline double half_sum(const float* e, ptrdiff_t n) {
    float sums[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) sums[l] += e[i + l];
    }
    for (; i < n; ++i) sums[i % lanes] += e[i];
    double sum = 0;
    for (float s : sums) sum += s;
    return sum;
}

// e = exp(x / T) of a chunk of a tame row, and their sum; with `with_largest`, the largest x too.
template <class Half, bool with_largest>
struct HalfPowers {
    float largest = -std::numeric_limits<float>::infinity();
    double sum = 0;
    bool tame = true;

    HalfPowers() = default;
    HalfPowers(const float* x, float* e, ptrdiff_t n, Rate<float> rate) {
        for (ptrdiff_t i = 0; i < n && tame; i += block) {
            ptrdiff_t length = std::min(block, n - i);
            const float* from = x + i;
            float* to = e + i;
            Magnitude<float> farthest = 0;
#pragma omp simd reduction(max : farthest)
            for (ptrdiff_t j = 0; j < length; ++j) {
                Magnitude<float> far = magnitude(from[j]);
                farthest = far > farthest ? far : farthest;
                to[j] = power<Half>(from[j], rate).value;
            }
            tame = farthest <= magnitude(rate.tame);
            sum += half_sum(to, length);
        }
        if constexpr (with_largest) largest = maximum(x, n);
    }
};

template <class Half>
void half_softmax_chunk(float* x, ptrdiff_t n, Rate<float> rate, float scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) x[i] = power<Half>(x[i], rate).value * scale;
}

inline void scale_chunk(float* x, ptrdiff_t n, float scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) x[i] *= scale;
}

// A tame row; false, and nothing written, where it is not, or where one term outweighs all others.
template <Function function, class Half>
bool tame_half_row(const Half* x, Half* y, ptrdiff_t n, Rate<float> rate, Inverse<float> inverse, int threads) {
    using Powers = HalfPowers<Half, function != SOFTMAX>;
    alignas(64) float kept[chunk];  // the powers of a row of one chunk
    bool keeps = n <= chunk;
    std::atomic<bool> tame = true;
    Powers row;
    add_chunks(n, keeps ? 1 : threads,
        [&](ptrdiff_t from, ptrdiff_t length) {
            if (!tame.load(std::memory_order_relaxed)) return Powers();
            alignas(64) float part[chunk], powers[chunk];
            widen(x + from, part, length);
            return Powers(part, keeps ? kept : powers, length, rate);
        },
        [&](const Powers& part) {
            row.sum += part.sum;
            keep_larger(&row.largest, &part.largest, 1);
            if (!part.tame) tame.store(false, std::memory_order_relaxed);
        });
    if (!tame || row.sum >= Format<float>::tame_sum) return false;
    if constexpr (function == SOFTMAX) {
        float scale = static_cast<float>(1 / row.sum);
        if (keeps) {
            scale_chunk(kept, n, scale);
            narrow(kept, y, n);
            return true;
        }
        each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            half_softmax_chunk<Half>(part, length, rate, scale);
            narrow(part, y + from, length);
        });
        return true;
    }
    float m = row.largest;
    Power<float> top = power<Half>(m, rate);
    if (outweighs<Half>(top, row.sum)) return false;
    Pair log = log_of<float>({row.sum, 0}, 0, top);
    if constexpr (function == LOGSUMEXP) {
        *y = Half(shifted(m, log));
    } else {
        each_chunk(n, keeps ? 1 : threads, [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            log_softmax_chunk(part, part, length, m, inverse, static_cast<float>(log.high));
            narrow(part, y + from, length);
        });
    }
    return true;
}

// Any row with a maximum m: its partition and its results.
template <Function function, class Half>
void half_row(const Half* x, Half* y, ptrdiff_t n, float m, Rate<float> rate, Inverse<float> inverse, int threads) {
    Shift<float> shift(m, rate);
    Partition p{m, 0, 0, 0};
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            Partition of_part{m, 0, 0, 0};
            add_to(of_part, part, length, shift, rate, 1);
            return of_part;
        },
        [&](const Partition& part) {
            accumulate(p.others, p.low, part.others, part.low);
            p.equal += part.equal;
        });
    if constexpr (function == LOGSUMEXP) {
        *y = Half(shifted(m, log_of<float>({p.others, p.low}, p.equal, power<float>(m, shift, rate))));
    } else {
        each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            float part[chunk], result[chunk];
            widen(x + from, part, length);
            if constexpr (function == SOFTMAX) softmax_part(part, result, length, p, rate, 1);
            else log_softmax_part(part, result, length, p, rate, inverse, 1);
            narrow(result, y + from, length);
        });
    }
}

template <class Half>
float half_maximum(const Half* x, ptrdiff_t n, int threads) {
    float m = -std::numeric_limits<float>::infinity();
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            return maximum(part, length);
        },
        [&](float part) { keep_larger(&m, &part, 1); });
    return m;
}

}  // namespace
