// Products with the Jacobians for rows of 16-bit floats that are converted as they are read, twice.
//
// Sums are those of float32 rows, see `weighted`. Of float16, whose p are multiples of 2^-24, doubles can tell the mean from any v
// without a reference, products are exact in float32, and weights add up exactly there, from -1 to 1.
#pragma once
#include "half.h"
#include "products.h"

namespace {

// Shorter rows are faster as float32 in scratch.
#ifdef __AVX512F__
template <class Half>
constexpr ptrdiff_t long_half_product = std::is_same_v<Half, Float16> ? 32 : 64;
#else
template <class Half>
constexpr ptrdiff_t long_half_product = std::is_same_v<Half, Float16> ? 64 : 512;
#endif

template <class Half>
constexpr bool adds_exactly = std::is_same_v<Half, Float16>;

// Of n elements so many as there are lanes: a constant, in general.
template <class Half>
[[gnu::always_inline]] inline void widen_lanes(const Half* x, float* y, ptrdiff_t n) {
    if (n >= lanes) widen(x, y, lanes);
    else widen(x, y, n);
}

template <class Half>
double half_reference(const Half* p, const Half* v, ptrdiff_t n) {
    return adds_exactly<Half> ? 0 : static_cast<float>(v[first_with_weight(p, n)]);
}

// sum + p * (v - v_r).
template <class Half>
[[gnu::always_inline]] inline double plus_term(double sum, float p, float v, double v_r) {
    return adds_exactly<Half> ? sum + p * v : fma(double{p}, v - v_r, sum);
}

// The sums of p * (v - v_r) and of p. The last vector goes over some again, which do not count then.
template <class Half>
Weighted half_weighted(const Half* p, const Half* v, ptrdiff_t n, double v_r) {
    double sum[lanes] = {};
    std::conditional_t<adds_exactly<Half>, float, double> weight[lanes];
    for (auto& w : weight) w = adds_exactly<Half> ? -1 : 0;
    float w[lanes] = {}, x[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        fetch<false>(p + i + 2 * block, lanes);
        fetch<false>(v + i + 2 * block, lanes);
        widen(p + i, w, lanes);
        widen(v + i, x, lanes);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) sum[l] = plus_term<Half>(sum[l], w[l], x[l], v_r), weight[l] += w[l];
    }
    if (i < n) {
        ptrdiff_t last = std::max<ptrdiff_t>(n - lanes, 0), again = i - last;
        widen_lanes(p + last, w, n);
        widen_lanes(v + last, x, n);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            float counts = l < again ? 0 : w[l];
            sum[l] = plus_term<Half>(sum[l], counts, x[l], v_r), weight[l] += counts;
        }
    }
    double weights[lanes];
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) weights[l] = weight[l];
    fold_sum<lanes / 2>(sum);
    fold_sum<lanes / 2>(weights);
    return {sum[0], adds_exactly<Half> ? weights[0] + lanes : weights[0]};
}

template <Function function, class Half>
[[gnu::always_inline]] inline void half_products_of(const Half* p, const Half* v, float* y, ptrdiff_t n, float c, float rest) {
    float w[lanes] = {}, x[lanes] = {};
    widen_lanes(p, w, n);
    widen_lanes(v, x, n);
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) y[l] = product_of<function>(w[l], x[l] - c, rest);
}

// y may be v; so the last vector, which goes over some again, is computed first.
template <Function function, class Half>
void half_chunk(const Half* p, const Half* v, Half* y, ptrdiff_t n, float c, float rest) {
    ptrdiff_t length = std::min(n, lanes), end = n - length;
    float last[lanes], some[lanes];
    half_products_of<function>(p + end, v + end, last, n, c, rest);
    for (ptrdiff_t i = 0; i + lanes <= n; i += lanes) {
        half_products_of<function>(p + i, v + i, some, lanes, c, rest);
        narrow(some, y + i, lanes);
    }
    if (n >= lanes) narrow(last, y + end, lanes);
    else narrow(last, y, n);
}

// Whether there is a mean. Weights that are not of probabilities do not add up exactly.
template <class Half>
[[gnu::always_inline]] inline bool is_exact(double mean, double weight) {
    return std::isfinite(mean) && (!adds_exactly<Half> || weight < 2);
}

// See put. Without a reference, rounding may leave something of a mean that is v: it would be the sign of a 0.
template <class Half>
[[gnu::always_inline]] inline void put_half(float& c, float& rest, double v_r, double mean) {
    put(c, rest, v_r, mean);
    if (adds_exactly<Half>) rest = std::fabs(rest) < std::fabs(c) * 0x1p-45f ? 0 : rest;
}

// A row, which threads may share; false where its mean is not exact.
template <Function function, class Half>
bool half_product(const Half* p, const Half* v, Half* y, ptrdiff_t n, int threads) {
    double v_r = half_reference(p, v, n);
    Weighted all{0, 0};
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return half_weighted(p + from, v + from, length, v_r); },
               [&](Weighted part) { all.sum += part.sum, all.weight += part.weight; });
    double mean = mean_of(all);
    if (!is_exact<Half>(mean, all.weight)) return false;
    float c, rest;
    put_half<Half>(c, rest, v_r, mean);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        half_chunk<function>(p + from, v + from, y + from, length, c, rest);
    });
    return true;
}

// Rows; is_not(r) is called for those whose mean is not exact. What depends on the sums of short ones is computed for some at once.
template <Function function, class Half, class IsNot>
void half_products(const Half* p, const Half* v, Half* y, ptrdiff_t n, ptrdiff_t count, int threads, IsNot is_not) {
    if (n >= long_product) {
        for (ptrdiff_t r = 0; r < count; ++r)
            if (!half_product<function>(p + r * n, v + r * n, y + r * n, n, threads)) is_not(r);
        return;
    }
    constexpr ptrdiff_t at_a_time = 16;
    double v_r[at_a_time], mean[at_a_time];
    float c[at_a_time], rest[at_a_time];
    Weighted all[at_a_time];
    for (ptrdiff_t first = 0, some; first < count; first += some) {
        auto at = [=](ptrdiff_t r) { return (first + r) * n; };
        some = std::min(at_a_time, count - first);
        for (ptrdiff_t r = 0; r < some; ++r) {
            v_r[r] = half_reference(p + at(r), v + at(r), n);
            all[r] = half_weighted(p + at(r), v + at(r), n, v_r[r]);
        }
#pragma omp simd
        for (ptrdiff_t r = 0; r < some; ++r) {
            mean[r] = mean_of(all[r]);
            put_half<Half>(c[r], rest[r], v_r[r], mean[r]);
        }
        for (ptrdiff_t r = 0; r < some; ++r) {
            if (is_exact<Half>(mean[r], all[r].weight)) half_chunk<function>(p + at(r), v + at(r), y + at(r), n, c[r], rest[r]);
            else is_not(first + r);
        }
    }
}

}  // namespace
