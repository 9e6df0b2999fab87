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

// Up to these lengths they become rows of float32: softmax has their powers as exact as the above, logarithms those of float32.
template <Function function>
constexpr ptrdiff_t short_half_row = function == SOFTMAX ? short_row : 31;

// Sixteen powers, or the first n of them, each to its lane.
template <bool whole, bool stores, bool with_largest, class Half>
[[gnu::always_inline]] inline void add_half_powers(const float* x, float* e, ptrdiff_t n, Rate<float> rate, float* sum, float* largest,
                                                   Magnitude<float>* farthest) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) {
        bool exists = whole || l < n;
        float v = exists ? x[l] : 0;
        Magnitude<float> far = magnitude(v);
        farthest[l] = far > farthest[l] ? far : farthest[l];
        if (with_largest && exists) largest[l] = v > largest[l] ? v : largest[l];
        float p = power<Half>(v, rate).value;
        if (stores && exists) e[l] = p;
        sum[l] += exists ? p : 0;
    }
}

// The sum of exp(x / T) of a chunk, of each block in 16 lanes; with `stores`, they are kept, and with `with_largest`, the largest x too.
template <class Half, bool stores, bool with_largest>
struct HalfPowers {
    float largest = -std::numeric_limits<float>::infinity();
    double sum = 0;
    bool tame = true;

    HalfPowers() = default;
    HalfPowers(const float* x, float* e, ptrdiff_t n, Rate<float> rate) {
        float most[lanes];
        for (float& m : most) m = largest;
        for (ptrdiff_t i = 0; i < n && tame;) {
            ptrdiff_t end = std::min(n, i + block);
            float sums[lanes] = {};
            Magnitude<float> farthest[lanes] = {};
            for (; i + lanes <= end; i += lanes)
                add_half_powers<true, stores, with_largest, Half>(x + i, e + i, lanes, rate, sums, most, farthest);
            if (i < end) add_half_powers<false, stores, with_largest, Half>(x + i, e + i, end - i, rate, sums, most, farthest);
            i = end;
            fold_maximum<lanes / 2>(farthest);
            tame = farthest[0] <= magnitude(rate.tame);
            double of_block[lanes];
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) of_block[l] = sums[l];
            fold_sum<lanes / 2>(of_block);
            sum += of_block[0];
        }
        if constexpr (with_largest) fold_maximum<lanes / 2>(most), largest = most[0];
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
bool tame_half_row(const Half* x, Half* y, ptrdiff_t n, Rate<float> rate, Inverse<float> inverse, float* scratch, int threads) {
    using Powers = HalfPowers<Half, function == SOFTMAX, function != SOFTMAX>;
    alignas(64) float of_chunk[chunk];
    float* kept = n <= chunk ? of_chunk : scratch;  // the powers, unless they are computed twice
    if (n <= chunk) threads = 1;
    std::atomic<bool> tame = true;
    Powers row;
    add_chunks(n, threads,
        [&](ptrdiff_t from, ptrdiff_t length) {
            if (!tame.load(std::memory_order_relaxed)) return Powers();
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            return Powers(part, kept ? kept + from : part, length, rate);
        },
        [&](const Powers& part) {
            row.sum += part.sum;
            keep_larger(&row.largest, &part.largest, 1);
            if (!part.tame) tame.store(false, std::memory_order_relaxed);
        });
    if (!tame || row.sum >= Format<float>::tame_sum) return false;
    if constexpr (function == SOFTMAX) {
        float scale = static_cast<float>(1 / row.sum);
        each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            if (kept) {
                scale_chunk(kept + from, length, scale);
                narrow(kept + from, y + from, length);
            } else {
                alignas(64) float part[chunk];
                widen(x + from, part, length);
                half_softmax_chunk<Half>(part, length, rate, scale);
                narrow(part, y + from, length);
            }
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
        each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            log_softmax_chunk(part, part, length, m, inverse, static_cast<float>(log.high));
            narrow(part, y + from, length);
        });
    }
    return true;
}

// The logarithms of the first rows, not longer than a block, as far as they are tame, some at a time, since a logarithm takes a
// while: returns how many.
template <Function function, class Half>
ptrdiff_t tame_half_logs(const Half* x, Half* y, ptrdiff_t n, ptrdiff_t count, Rate<float> rate, Inverse<float> inverse) {
    constexpr ptrdiff_t together = 4096, most = together / short_half_row<function>;
    alignas(64) float part[together], *none = nullptr, max[most], top[most], tail[most];
    alignas(64) double sum[most], low[most], equal[most];
    const ptrdiff_t at_a_time = block / n;
    count = std::min(count, together / n);
    for (ptrdiff_t r = 0; r < count; ++r) {
        if (r % at_a_time == 0) widen(x + r * n, part + r * n, std::min(at_a_time, count - r) * n);
        HalfPowers<Half, false, true> row(part + r * n, none, n, rate);
        if (!row.tame) count = r;
        else max[r] = row.largest, sum[r] = row.sum, low[r] = equal[r] = 0;
    }
#pragma omp simd
    for (ptrdiff_t r = 0; r < count; ++r) put(top[r], tail[r], power<Half>(max[r], rate));
    for (ptrdiff_t r = 0; r < count; ++r) {
        if (!outweighs<Half>(Power<float>{top[r], 0}, sum[r])) continue;
        float* row = part + r * n;
        Pair others = sum_of_powers<SMALLER, float>(row, none, n, max[r], Shift<float>::none(), rate, 1);
        sum[r] = others.high, low[r] = others.low, equal[r] = static_cast<double>(count_equal(row, n, max[r]));
        put(top[r], tail[r], power<float>(max[r], rate));
    }
#pragma omp simd
    for (ptrdiff_t r = 0; r < count; ++r) to_log<float, true>(sum[r], low[r], equal[r], Power<float>{top[r], tail[r]});
    for (ptrdiff_t r = 0; r < count; ++r) {
        if constexpr (function == LOGSUMEXP) {
            y[r] = Half(shifted(max[r], {sum[r], low[r]}));
        } else {
            float* row = part + r * n;
            log_softmax_chunk(row, row, n, max[r], inverse, static_cast<float>(sum[r]));
            narrow(row, y + r * n, n);
        }
    }
    return count;
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
