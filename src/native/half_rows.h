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
    static constexpr double window = 80;  // below exp(-window) nothing shows in a result
};
template <>
struct Format<BFloat16> : Format<Float16> {
    static constexpr double window = 94;
};

// Up to these lengths they become rows of float32: softmax has their powers as exact as the above, logarithms those of float32.
template <Function function>
constexpr ptrdiff_t short_half_row = function == SOFTMAX ? short_row : 31;

// Sixteen powers, or the first n of them, each to its lane; m is the maximum, of a TAME row any.
template <bool whole, bool stores, Terms terms, bool with_largest, class Half>
[[gnu::always_inline]] inline void add_half_powers(const float* x, float* e, ptrdiff_t n, float m, Shift<float> shift, Rate<float> rate,
                                                   float* sum, float* largest, Magnitude<float>* farthest) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) {
        bool exists = whole || l < n;
        float v = exists ? x[l] : 0;
        if constexpr (terms == TAME) {
            Magnitude<float> far = magnitude(v);
            farthest[l] = far > farthest[l] ? far : farthest[l];
        }
        if (with_largest && exists) largest[l] = v > largest[l] ? v : largest[l];
        float p = power_of<Half, terms>(v, shift, rate).value;
        if (stores && exists) e[l] = p;
        bool counts = exists && (terms != SMALLER || v != m);
        sum[l] += counts ? p : 0;
    }
}

// The sum of exp(x / T) of a chunk, of each block in 16 lanes; with `stores`, they are kept. Of a tame one, the largest x too, if asked
// for, and whether it is tame.
template <class Half, bool stores, Terms terms, bool with_largest>
struct HalfPowers {
    float largest = -std::numeric_limits<float>::infinity();
    double sum = 0;
    bool done = true;

    HalfPowers() = default;
    HalfPowers(const float* x, float* e, ptrdiff_t n, float m, Shift<float> shift, Rate<float> rate) {
        float most[lanes];
        for (float& m : most) m = largest;
        if constexpr (terms == TAME) done = farthest(x, std::min(n, lanes)) <= magnitude(rate.tame);  // see tame_sum
        for (ptrdiff_t i = 0; i < n && done;) {
            ptrdiff_t end = std::min(n, i + block);
            float sums[lanes] = {};
            Magnitude<float> farthest[lanes] = {};
            for (; i + lanes <= end; i += lanes)
                add_half_powers<true, stores, terms, with_largest, Half>(x + i, e + i, lanes, m, shift, rate, sums, most, farthest);
            if (i < end)
                add_half_powers<false, stores, terms, with_largest, Half>(x + i, e + i, end - i, m, shift, rate, sums, most, farthest);
            i = end;
            if constexpr (terms == TAME) fold_maximum<lanes / 2>(farthest), done = farthest[0] <= magnitude(rate.tame);
            double of_block[lanes];
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) of_block[l] = sums[l];
            fold_sum<lanes / 2>(of_block);
            sum += of_block[0];
        }
        if constexpr (with_largest) fold_maximum<lanes / 2>(most), largest = most[0];
    }
};

template <class Half, Terms terms>
void half_softmax_chunk(float* x, ptrdiff_t n, Shift<float> shift, Rate<float> rate, float scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) x[i] = scaled<Half, terms == TAME>(power_of<Half, terms>(x[i], shift, rate), scale, 0.0f);
}

// 1 / sum, as `raised`; a float might not hold the sum.
template <Terms terms>
float half_scale(double sum) {
    return static_cast<float>(raised<Float16, terms == TAME, float> / sum);
}

template <Terms terms>
void scale_half_chunk(float* x, ptrdiff_t n, float scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) x[i] = scaled<Float16, terms == TAME>(Power<float>{x[i], 0}, scale, 0.0f);
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

// The sum of the powers of the elements smaller than m.
template <class Half>
double half_rest(const float* x, ptrdiff_t n, float m, Shift<float> shift, Rate<float> rate) {
    float* none = nullptr;
    return HalfPowers<Half, false, SMALLER, false>(x, none, n, m, shift, rate).sum;
}

// As log_of_row has it.
template <class Half>
Pair half_log_of_row(double sum, const Half* x, ptrdiff_t n, float m, Shift<float> shift, Rate<float> rate, int threads) {
    Power<float> top = power<Half>(m, shift, rate);
    if (!outweighs<Half>(top, sum, n)) return log_of<float>({sum, 0}, 0, top);
    double rest = 0;
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) {
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            return half_rest<Half>(part, length, m, shift, rate);
        },
        [&](double part) { rest += part; });
    return log_of<float>({rest, 0}, 1, top);
}

// A row that is TAME, or any with a maximum m; false, and nothing written, where it should be TAME and is not.
template <Function function, Terms terms, class Half>
bool half_row(const Half* x, Half* y, ptrdiff_t n, float m, Rate<float> rate, Inverse<float> inverse, float* scratch, int threads) {
    using Powers = HalfPowers<Half, function == SOFTMAX, terms, terms == TAME && function != SOFTMAX>;
    const Shift<float> shift = terms == TAME ? Shift<float>::none() : Shift<float>(m, rate);
    alignas(64) float of_chunk[chunk];
    float* kept = n <= chunk ? of_chunk : scratch;  // the powers, unless they are computed twice
    if (n <= chunk) threads = 1;
    std::atomic<bool> done = true;
    Powers row;
    add_chunks(n, threads,
        [&](ptrdiff_t from, ptrdiff_t length) {
            if (!done.load(std::memory_order_relaxed)) return Powers();
            alignas(64) float part[chunk];
            widen(x + from, part, length);
            Powers powers(part, kept ? kept + from : part, length, m, shift, rate);
            if (!powers.done) done.store(false, std::memory_order_relaxed);
            return powers;
        },
        [&](const Powers& part) {
            row.sum += part.sum;
            keep_larger(&row.largest, &part.largest, 1);
        });
    if (!done || (terms == TAME && row.sum >= Format<float>::tame_sum)) return false;
    if constexpr (function == SOFTMAX) {
        float scale = half_scale<terms>(row.sum);
        each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
            if (kept) {
                scale_half_chunk<terms>(kept + from, length, scale);
                narrow(kept + from, y + from, length);
            } else {
                alignas(64) float part[chunk];
                widen(x + from, part, length);
                half_softmax_chunk<Half, terms>(part, length, shift, rate, scale);
                narrow(part, y + from, length);
            }
        });
        return true;
    }
    if constexpr (terms == TAME) m = row.largest;
    Pair log = half_log_of_row(row.sum, x, n, m, shift, rate, threads);
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

// The logarithms of the first rows, not longer than a block, as far as their maxima are finite, some at a time, since a logarithm
// takes a while: returns how many.
template <Function function, class Half>
ptrdiff_t half_logs(const Half* x, Half* y, ptrdiff_t n, ptrdiff_t count, Rate<float> rate, Inverse<float> inverse) {
    constexpr ptrdiff_t together = 4096, most = together / short_half_row<function>;
    alignas(64) float part[together], *none = nullptr, max[most], top[most], tail[most];
    alignas(64) double sum[most], low[most], equal[most];
    Shifts<float, most> shift;
    const ptrdiff_t at_a_time = block / n;
    count = std::min(count, together / n);
    for (ptrdiff_t r = 0; r < count; ++r) {
        if (r % at_a_time == 0) widen(x + r * n, part + r * n, std::min(at_a_time, count - r) * n);
        Shift<float> s = Shift<float>::none();
        HalfPowers<Half, false, TAME, true> tame(part + r * n, none, n, 0, s, rate);
        max[r] = tame.largest, sum[r] = tame.sum, low[r] = equal[r] = 0;
        if (!tame.done) {
            max[r] = maximum(part + r * n, n);
            s = Shift<float>(max[r], rate);
            sum[r] = HalfPowers<Half, false, ALL, false>(part + r * n, none, n, max[r], s, rate).sum;
            if (!std::isfinite(max[r])) count = r;
        }
        shift.put(r, s);
    }
#pragma omp simd
    for (ptrdiff_t r = 0; r < count; ++r) put(top[r], tail[r], power_of<Half, ALL>(max[r], shift, r, rate));
    for (ptrdiff_t r = 0; r < count; ++r) {
        if (!outweighs<Half>(Power<float>{top[r], 0}, sum[r], n)) continue;
        sum[r] = half_rest<Half>(part + r * n, n, max[r], shift[r], rate), equal[r] = 1;
    }
#pragma omp simd
    for (ptrdiff_t r = 0; r < count; ++r) to_log<float>(sum[r], low[r], equal[r], Power<float>{top[r], tail[r]});
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

}  // namespace
