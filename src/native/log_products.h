// Products of a vector with the Jacobian of log_softmax, from the probabilities p: v - p * sum(v), without cancellation.
#pragma once
#include "products.h"

namespace {

// The index of a p above 1/2, of which there is one at most; -1 where there is none. Only its 1 - p can cancel.
template <class T>
ptrdiff_t above_half(const T* p, ptrdiff_t n) {
    ptrdiff_t k = -1;
    if (n <= short_row) {
        for (ptrdiff_t i = 0; i < n; ++i) k = p[i] > T(0.5) ? i : k;
        return k;
    }
    for (ptrdiff_t i = 0; i < n && k < 0; i += block)
        if (ptrdiff_t length = std::min(block, n - i); maximum(p + i, length) > T(0.5)) k = i + largest(p + i, length);
    return k;
}

// The sum of v where p is not 0, in lanes.
template <class T>
Pair counted_sum(const T* p, const T* v, ptrdiff_t n) {
    double high[lanes] = {}, low[lanes] = {};
    ptrdiff_t whole = n / lanes * lanes;
    for (ptrdiff_t i = 0; i < whole; i += lanes) {
        fetch<false>(p + i + block, lanes);
        fetch<false>(v + i + block, lanes);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) add_term<T>(high[l], low[l], static_cast<double>(counted(p[i + l], v[i + l])), 0.0);
    }
    Pair sum = total<T>(high, low);
    for (ptrdiff_t i = whole; i < n; ++i) accumulate(sum.high, sum.low, static_cast<double>(counted(p[i], v[i])), 0.0);
    return sum;
}

// The sum of all v but v[k], where p is not 0: of what is before it and what is after.
template <class T>
Pair sum_of_others(const T* p, const T* v, ptrdiff_t n, ptrdiff_t k, int threads) {
    if (n <= short_row) {
        Pair even{0, 0}, odd{0, 0};
        auto term = [=](ptrdiff_t i) { return i == k ? 0 : static_cast<double>(counted(p[i], v[i])); };
        for (ptrdiff_t i = 0; i < n / 2 * 2; i += 2) {
            add_term<T>(even.high, even.low, term(i), 0.0);
            add_term<T>(odd.high, odd.low, term(i + 1), 0.0);
        }
        if (n % 2) add_term<T>(even.high, even.low, term(n - 1), 0.0);
        accumulate(even.high, even.low, odd.high, odd.low);
        return even;
    }
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        if (k < from || k >= from + length) return counted_sum(p + from, v + from, length);
        Pair sum = counted_sum(p + from, v + from, k - from), after = counted_sum(p + k + 1, v + k + 1, from + length - k - 1);
        accumulate(sum.high, sum.low, after.high, after.low);
        return sum;
    });
}

// One element of log_softmax_vjp: v - p * sum(v), 0 where p is.
[[gnu::always_inline]] inline double less_share(double p, double v, Pair sum) {
    double y = fma(-p, sum.high, v) - p * sum.low;
    return p == 0 ? 0 : y;
}
[[gnu::always_inline]] inline float less_share(float p, float v, float sum) {
    float y = v - p * sum;
    return p == 0 ? 0 : y;
}

template <class T, class Sum>
void log_softmax_vjp_chunk(const T* p, const T* v, T* y, ptrdiff_t n, Sum sum) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = less_share(p[i], v[i], sum);
}

// y = v - p * sum(v); at a p above 1/2, (sum of the other p) * v - p * (sum of the other v).
template <class T>
void log_softmax_vjp(const T* p, const T* v, T* y, ptrdiff_t n, int threads, bool streams) {
    ptrdiff_t k = above_half(p, n);
    double p_k = k < 0 ? 0 : p[k], v_k = k < 0 ? 0 : v[k];
    Pair other_v = sum_of_others(p, v, n, k, threads), sum = other_v;
    accumulate(sum.high, sum.low, v_k, 0);
    double other_p = k < 0 ? 1 : rounded(sum_of_others(p, p, n, k, threads));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        auto ps = p + from, vs = v + from;
        auto put = [=](auto sum) {
            if (!streams || n < long_product) return log_softmax_vjp_chunk(ps, vs, y + from, length, sum);
            stream_product<T>(nullptr, ps, vs, y + from, length, [=](ptrdiff_t i) { return less_share(ps[i], vs[i], sum); });
        };
        if constexpr (sizeof(T) == 8) put(sum);
        else put(static_cast<float>(sum.high));
    });
    if (k >= 0) y[k] = static_cast<T>(other_p * v_k - p_k * rounded(other_v));
}

}  // namespace
