// Derivatives of softmax from its probabilities p, without cancellation: relative to k, the largest of the row.
#pragma once
#include "long_rows.h"

namespace {

template <class T>
ptrdiff_t largest(const T* p, ptrdiff_t n) {
    T m = maximum(p, n);
    for (ptrdiff_t i = 0; i < n; ++i)
        if (p[i] == m) return i;
    return 0;  // nothing but NaN
}

// The sum of term(0), ..., term(n - 1), each as a pair, in the lanes of all long rows.
template <class Term>
Pair sum_of_terms(ptrdiff_t n, Term term) {
    Lanes<double> sums;
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            Pair t = term(i + l);
            sums.add(l, t.high, t.low);
        }
    }
    for (; i < n; ++i) {
        Pair t = term(i);
        sums.add(i % lanes, t.high, t.low);
    }
    return sums.total();
}

template <class T>
Pair sum_of_products(const T* p, const T* g, ptrdiff_t n, double g_k) {
    return sum_of_terms(n, [=](ptrdiff_t i) {
        double a = p[i], h = g[i] - g_k, product = a * h;
        return Pair{product, fma(a, h, -product)};
    });
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
    Pair sum{0, 0};
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) { return sum_of_products(p + from, g + from, length, g_k); },
        [&](Pair part) { accumulate(sum.high, sum.low, part.high, part.low); });
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
    Pair others = sum_of_terms(n, [=](ptrdiff_t i) { return Pair{i == k ? 0 : static_cast<double>(p[i]), 0}; });
    each(n, threads, [=](ptrdiff_t i) {
        jacobian_row(p, y + i * n, n, i, i == k ? others.high + others.low : 1 - static_cast<double>(p[i]));
    });
}

}  // namespace
