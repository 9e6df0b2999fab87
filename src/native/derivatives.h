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
double sum_of(ptrdiff_t n, Term term) {
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
    Pair sum = sums.total();
    return sum.high + sum.low;
}

// y = p * (g - sum(p * g)) = p * (h - sum(p * h)), h = g - g[k]: what all of g have in common drops out exactly.
template <class T>
void vjp_row(const T* p, const T* g, T* y, ptrdiff_t n) {
    double g_k = g[largest(p, n)];
    double s = sum_of(n, [=](ptrdiff_t i) {
        double a = p[i], h = g[i] - g_k, product = a * h;
        return Pair{product, fma(a, h, -product)};
    });
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = static_cast<T>(p[i] * ((g[i] - g_k) - s));
}

// y[i, j] = p[i] * ((i == j) - p[j]), where 1 - p[k] is the sum of the others.
template <class T>
void jacobian_row(const T* p, T* y, ptrdiff_t n) {
    ptrdiff_t k = largest(p, n);
    double others = sum_of(n, [=](ptrdiff_t i) { return Pair{i == k ? 0 : static_cast<double>(p[i]), 0}; });
    for (ptrdiff_t i = 0; i < n; ++i, y += n) {
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) y[j] = 0 - p[i] * p[j];
        y[i] = static_cast<T>(p[i] * (i == k ? others : 1 - static_cast<double>(p[i])));
    }
}

}  // namespace
