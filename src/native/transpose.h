// Rows of a few elements, laid side by side as columns, and back.
#pragma once
#include <utility>

#include "sums.h"

namespace {

// visit(n), of a constant up to `known`.
template <ptrdiff_t known, class Visit>
auto visit_few(ptrdiff_t n, Visit visit) {
    if (n == known) return visit(std::integral_constant<ptrdiff_t, known>());
    if constexpr (known > 2) return visit_few<known - 1>(n, visit);
    else return visit(n);
}

// A vector is lanes of 16 bytes, of so many elements.
template <class T>
constexpr ptrdiff_t of_lane = 16 / sizeof(T);
template <class T>
constexpr ptrdiff_t of_vector = vector_size / sizeof(T);

#if __has_builtin(__builtin_shufflevector)
// Some elements as a vector, wherever they begin.
template <class T, ptrdiff_t size>
using Elements [[gnu::vector_size(size * sizeof(T)), gnu::aligned(sizeof(T)), gnu::may_alias]] = T;
template <class T>
using Vector = Elements<T, of_vector<T>>;
template <class T>
using Lane = Elements<T, of_lane<T>>;

// Of lanes that lie `apart`, a vector of `size` elements.
template <ptrdiff_t size, class T, size_t... i>
[[gnu::always_inline]] inline Elements<T, size> lanes_at(const T* x, ptrdiff_t apart, std::index_sequence<i...>) {
    if constexpr (size == of_lane<T>) {
        return *reinterpret_cast<const Lane<T>*>(x);
    } else {
        constexpr ptrdiff_t half = size / 2;
        constexpr std::make_index_sequence<half> of_half;
        Elements<T, half> low = lanes_at<half>(x, apart, of_half), high = lanes_at<half>(x + half / of_lane<T> * apart, apart, of_half);
        return __builtin_shufflevector(low, high, i...);
    }
}

template <ptrdiff_t lane, class V, class T, size_t... i>
[[gnu::always_inline]] inline void put_lanes(V v, T* y, ptrdiff_t apart, std::index_sequence<i...> of) {
    *reinterpret_cast<Lane<T>*>(y + lane * apart) = __builtin_shufflevector(v, v, lane * of_lane<T> + i...);
    if constexpr (16 * (lane + 1) < vector_size) put_lanes<lane + 1>(v, y, apart, of);
}

// Of each lane of two vectors the lower halves, or the upper ones: an element of the first, one of the second, and so on.
template <class T, ptrdiff_t from, size_t... i>
[[gnu::always_inline]] inline Vector<T> interleaved(Vector<T> a, Vector<T> b, std::index_sequence<i...>) {
    constexpr ptrdiff_t n = of_lane<T>, size = of_vector<T>;
    return __builtin_shufflevector(a, b, i / n * n + from + i % n / 2 + i % 2 * size...);
}

// Lanes of n vectors hold a square of n x n: its columns.
template <class T>
[[gnu::always_inline]] inline void transpose(Vector<T>* v) {
    constexpr ptrdiff_t n = of_lane<T>;
    constexpr std::make_index_sequence<of_vector<T>> all;
#pragma GCC unroll 4
    for (ptrdiff_t step = 1; step < n; step *= 2) {
        Vector<T> of[n];
#pragma GCC unroll 4
        for (ptrdiff_t i = 0; i < n; ++i) of[i] = v[i];
#pragma GCC unroll 4
        for (ptrdiff_t i = 0; i < n / 2; ++i) {
            v[2 * i] = interleaved<T, 0>(of[i], of[i + n / 2], all);
            v[2 * i + 1] = interleaved<T, n / 2>(of[i], of[i + n / 2], all);
        }
    }
}

// Of 4 and of 8 elements a compiler that has AVX-512 makes permutations of a plain loop, faster ones.
template <class T>
bool are_squares(ptrdiff_t n, ptrdiff_t count) {
    return n >= 4 && count >= of_vector<T> && (vector_size < 64 || (n != 4 && n != 8));
}

// Of a vector of rows or more; where others are left over, some rows and columns again.
template <class T, class Visit>
[[gnu::always_inline]] inline void each_square(ptrdiff_t n, ptrdiff_t count, Visit visit) {
    for (ptrdiff_t r = 0; r < count; r += of_vector<T>)
        for (ptrdiff_t j = 0; j < n; j += of_lane<T>)
            visit(std::min(r, count - of_vector<T>), std::min(j, n - of_lane<T>));
}
#endif

// The j-th elements of `count` rows go to columns + j * width.
template <class T>
void to_columns(const T* x, T* columns, ptrdiff_t width, ptrdiff_t n, ptrdiff_t count) {
#if __has_builtin(__builtin_shufflevector)
    if (are_squares<T>(n, count))
        return each_square<T>(n, count, [=](ptrdiff_t r, ptrdiff_t j) __attribute__((always_inline)) {
            Vector<T> v[of_lane<T>];
#pragma GCC unroll 4
            for (ptrdiff_t i = 0; i < of_lane<T>; ++i)
                v[i] = lanes_at<of_vector<T>>(x + (r + i) * n + j, of_lane<T> * n, std::make_index_sequence<of_vector<T>>());
            transpose<T>(v);
#pragma GCC unroll 4
            for (ptrdiff_t i = 0; i < of_lane<T>; ++i) *reinterpret_cast<Vector<T>*>(columns + (j + i) * width + r) = v[i];
        });
#endif
    visit_few<8>(n, [=](auto n) {
#pragma omp simd
        for (ptrdiff_t r = 0; r < count; ++r)
            for (ptrdiff_t j = 0; j < n; ++j) columns[j * width + r] = x[r * n + j];
    });
}

// And back.
template <class T>
void to_rows(const T* columns, ptrdiff_t width, T* y, ptrdiff_t n, ptrdiff_t count) {
#if __has_builtin(__builtin_shufflevector)
    if (are_squares<T>(n, count))
        return each_square<T>(n, count, [=](ptrdiff_t r, ptrdiff_t j) __attribute__((always_inline)) {
            Vector<T> v[of_lane<T>];
#pragma GCC unroll 4
            for (ptrdiff_t i = 0; i < of_lane<T>; ++i) v[i] = *reinterpret_cast<const Vector<T>*>(columns + (j + i) * width + r);
            transpose<T>(v);
#pragma GCC unroll 4
            for (ptrdiff_t i = 0; i < of_lane<T>; ++i)
                put_lanes<0>(v[i], y + (r + i) * n + j, of_lane<T> * n, std::make_index_sequence<of_lane<T>>());
        });
#endif
    visit_few<8>(n, [=](auto n) {
#pragma omp simd
        for (ptrdiff_t r = 0; r < count; ++r)
            for (ptrdiff_t j = 0; j < n; ++j) y[r * n + j] = columns[j * width + r];
    });
}

}  // namespace
