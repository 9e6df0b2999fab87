// The Jacobians of softmax and log_softmax from the probabilities p, without cancellation.
#pragma once
#include "products.h"

namespace {

// 1 - p[i]; of a peak, the sum of the others.
template <class T>
struct OneLess {
    const T* p;
    double others = 0;
    OneLess(const T* p, ptrdiff_t n, int threads) : p(p) {
        if (n <= short_row) others = rounded(in_turn<T>(n, [=](Pair& sum, ptrdiff_t i) { add_other(sum, p[i]); }));
        else if (maximum(p, n, threads) > peak<T>)
            others = rounded(sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return sum_of_others(p + from, length); }));
    }
    double operator()(ptrdiff_t i) const { return p[i] > peak<T> ? others : 1 - static_cast<double>(p[i]); }

private:
    static void add_other(Pair& sum, T p) { add_term<T>(sum.high, sum.low, p > peak<T> ? 0 : static_cast<double>(p), 0.0); }
    static Pair sum_of_others(const T* p, ptrdiff_t n) {
        return sum_of<T>(n, [=](ptrdiff_t i) { return Term<T>(p[i] > peak<T> ? T(0) : p[i], 1); });
    }
};

constexpr ptrdiff_t eight = 8;

// y[j] = -(scale * p[j]).
template <class T>
[[gnu::always_inline]] inline void negative(const T* p, T* y, ptrdiff_t n, T scale) {
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = 0 - scale * p[j];
}

// The same of a row: a short one by eights, the last of which go over some again, which is faster than an end of their own.
template <class T>
[[gnu::always_inline]] inline void negative_row(const T* p, T* y, ptrdiff_t n, T scale) {
    if (n < eight || n > short_row) return negative(p, y, n, scale);
    for (ptrdiff_t j = 0; j + eight <= n; j += eight) negative(p + j, y + j, eight, scale);
    negative(p + n - eight, y + n - eight, eight, scale);
}

// The same of all rows of a matrix, scale(i) that of row i: where two columns of eights are enough, one after the other.
template <class T, class Scale>
[[gnu::always_inline]] inline void negative_rows(const T* p, T* y, ptrdiff_t n, Scale scale) {
    if (n < eight || n > 2 * eight) {
        for (ptrdiff_t i = 0; i < n; ++i) negative_row(p, y + i * n, n, scale(i));
        return;
    }
    for (ptrdiff_t from = 0; from < n; from += eight) {
        ptrdiff_t first = std::min(from, n - eight);
        T column[eight];
        std::copy_n(p + first, eight, column);
        for (ptrdiff_t i = 0; i < n; ++i) negative(column, y + i * n + first, eight, scale(i));
    }
}

// `outer` of a result too large for the cache: rows that are short are put together, some at a time, in its first level.
template <class T, class Scale, class Diagonal>
void outer_stream(const T* p, T* y, ptrdiff_t n, int threads, Scale scale, Diagonal diagonal) {
    constexpr ptrdiff_t size = 4096;
    if (n >= size / 16) {
        constexpr ptrdiff_t some = 16;
        each((n + some - 1) / some, threads, [=](ptrdiff_t group) {
            Stream<T> stream;
            for (ptrdiff_t i = group * some; i < std::min((group + 1) * some, n); ++i) {
                T factor = scale(i), of_diagonal = static_cast<T>(diagonal(i));
                auto write = [&](ptrdiff_t from, ptrdiff_t length) {
                    const T* columns = p + from;
                    stream.write(y + i * n + from, length, false, [=](ptrdiff_t j) { return 0 - factor * columns[j]; });
                };
                write(0, i);
                stream.write(y + i * (n + 1), 1, false, [=](ptrdiff_t) { return of_diagonal; });
                write(i + 1, n - i - 1);
            }
        });
        return;
    }
    ptrdiff_t some = size / n;
    each((n + some - 1) / some, threads, [=](ptrdiff_t group) {
        T rows[size];
        ptrdiff_t from = group * some, count = std::min(some, n - from);
        for (ptrdiff_t i = 0; i < count; ++i) {
            negative_row(p, rows + i * n, n, scale(from + i));
            rows[i * n + from + i] = static_cast<T>(diagonal(from + i));
        }
        // without the 0, GCC copies 16 bytes at a time, for which the load of a vector then waits
        Stream<T>().write(y + from * n, count * n, false, [&](ptrdiff_t i) { return 0 + rows[i]; });
    });
}

// y[i, j] = (i == j ? diagonal(i) : 0) - scale(i) * p[j].
template <class T, class Scale, class Diagonal>
void outer(const T* p, T* y, ptrdiff_t n, int threads, bool streams, Scale scale, Diagonal diagonal) {
    if (streams) return outer_stream(p, y, n, threads, scale, diagonal);
    if (n > short_row)
        return each(n, threads, [=](ptrdiff_t i) {
            negative_row(p, y + i * n, n, scale(i));
            y[i * (n + 1)] = static_cast<T>(diagonal(i));
        });
    T of_diagonal[short_row];
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) of_diagonal[i] = static_cast<T>(diagonal(i));
    negative_rows(p, y, n, scale);
    for (ptrdiff_t i = 0; i < n; ++i) y[i * (n + 1)] = of_diagonal[i];
}

// y[i, j] = p[i] * ((i == j) - p[j]).
template <class T>
void softmax_jacobian(const T* p, T* y, ptrdiff_t n, int threads, bool streams) {
    OneLess<T> one_less(p, n, threads);
    outer(p, y, n, threads, streams, [=](ptrdiff_t i) { return p[i]; }, [=](ptrdiff_t i) { return p[i] * one_less(i); });
}

template <class T>
void softmax_jacobian_diagonal(const T* p, T* y, ptrdiff_t n) {
    OneLess<T> one_less(p, n, 1);
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = static_cast<T>(p[i] * one_less(i));
}

// y[i, j] = (i == j) - p[j]; 0 where p[i] is 0.
template <class T>
void log_softmax_jacobian(const T* p, T* y, ptrdiff_t n, int threads, bool streams) {
    OneLess<T> one_less(p, n, threads);
    outer(p, y, n, threads, streams, [=](ptrdiff_t i) { return T(p[i] != 0); },
          [=](ptrdiff_t i) { return p[i] == 0 ? 0 : one_less(i); });
}

}  // namespace
