// Derivatives of softmax from its probabilities p, without cancellation: relative to k, the largest of the row.
#pragma once
#include "short_rows.h"

namespace {

// The first i with p[i] == m; n where there is none.
template <class T>
ptrdiff_t first_equal(const T* p, ptrdiff_t n, T m) {
    using Index = std::make_signed_t<typename Format<T>::Bits>;
    Index first = static_cast<Index>(n);
#pragma omp simd reduction(min : first)
    for (Index i = 0; i < static_cast<Index>(n); ++i) {
        Index found = p[i] == m ? i : static_cast<Index>(n);
        first = found < first ? found : first;
    }
    return first;
}

// The index of the largest element, the first of several; 0 where there is nothing but NaN.
template <class T>
ptrdiff_t largest(const T* p, ptrdiff_t n) {
    ptrdiff_t from = 0;
    T m = -std::numeric_limits<T>::infinity();
    if (n <= short_row) {
        m = short_maximum(p, n);
        for (ptrdiff_t i = n - 1; i >= 0; --i) from += (i - from) * (p[i] == m);  // no branch, which would be mispredicted
        return from;
    }
    for (ptrdiff_t i = 0; i < n; i += block) {
        T of_block = maximum(p + i, std::min(block, n - i));
        if (of_block > m) m = of_block, from = i;
    }
    ptrdiff_t length = std::min(block, n - from), i = first_equal(p + from, length, m);
    return i < length ? from + i : 0;
}

// high + low += term: for a result of float32 in plain double, for float64 with the rounding errors.
template <class T>
struct Term {
    double value, error;
    explicit Term(double v) : value(v), error(0) {}
    Term(double a, double b) : value(a * b), error(sizeof(T) == 8 ? fma(a, b, -(a * b)) : 0) {}
};

// The sum of term(0), ..., term(n - 1): of a short row one after the other, of a long one in lanes.
template <class T, class Function>
[[gnu::always_inline]] inline Pair sum_of(ptrdiff_t n, Function term) {
    Pair sum{0, 0};
    if (n <= short_row) {
        for (ptrdiff_t i = 0; i < n; ++i) {
            Term<T> t = term(i);
            add_term<T>(sum.high, sum.low, t.value, t.error);
        }
        return sum;
    }
    double high[lanes] = {}, low[lanes] = {};
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            Term<T> t = term(i + l);
            add_term<T>(high[l], low[l], t.value, t.error);
        }
    }
    for (; i < n; ++i) {
        Term<T> t = term(i);
        add_term<T>(high[i % lanes], low[i % lanes], t.value, t.error);
    }
    for (ptrdiff_t l = 0; l < lanes; ++l) accumulate(sum.high, sum.low, high[l], low[l]);
    return sum;
}

// The sum of p * (g - g_k).
template <class T>
Pair sum_of_products(const T* p, const T* g, ptrdiff_t n, double g_k) {
    return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i], g[i] - g_k); });
}

template <class T>
void vjp_chunk(const T* p, const T* g, T* y, ptrdiff_t n, double g_k, double s) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = static_cast<T>(p[i] * ((g[i] - g_k) - s));
}

// y = p * (g - sum(p * g)) = p * (h - sum(p * h)), h = g - g[k]: what all of g have in common drops out exactly.
template <class T>
void vjp_row(const T* p, const T* g, T* y, ptrdiff_t n, int threads) {
    double g_k = g[largest(p, n)];
    Pair sum = sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_products(p + from, g + from, length, g_k);
    });
    double s = sum.high + sum.low;
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        vjp_chunk(p + from, g + from, y + from, length, g_k, s);
    });
}

// y[j] = p[i] * ((i == j) - p[j]), one_less being 1 - p[i].
template <class T>
void jacobian_row(const T* p, T* y, ptrdiff_t n, ptrdiff_t i, double one_less) {
    T p_i = p[i];
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = 0 - p_i * p[j];
    y[i] = static_cast<T>(p_i * one_less);
}

// The Jacobian of a row of probabilities; the 1 - p of the largest is the sum of the others.
template <class T>
void jacobian_of_row(const T* p, T* y, ptrdiff_t n, int threads) {
    ptrdiff_t k = largest(p, n);
    Pair others = sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(i == k ? 0 : static_cast<double>(p[i])); });
    each(n, threads, [=](ptrdiff_t i) {
        jacobian_row(p, y + i * n, n, i, i == k ? others.high + others.low : 1 - static_cast<double>(p[i]));
    });
}

}  // namespace
