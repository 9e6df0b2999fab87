// Rows to columns, and back.
#pragma once
#include <utility>

#include "sums.h"

namespace {

// A vector is lanes of 16 bytes, of so many elements.
template <class T>
constexpr ptrdiff_t of_lane = 16 / sizeof(T);
template <class T>
constexpr ptrdiff_t of_vector = vector_size / sizeof(T);

#if __has_builtin(__builtin_shufflevector)
template <class T, ptrdiff_t size>
using Elements [[gnu::vector_size(size * sizeof(T))]] = T;
template <class T>
using Vector = Elements<T, of_vector<T>>;
template <class T>
using Lane = Elements<T, of_lane<T>>;

// As vectors, wherever they begin. (Clang does not heed an alignment of such types.)
template <class V, class T>
[[gnu::always_inline]] inline V loaded(const T* x) {
    V v;
    __builtin_memcpy(&v, x, sizeof v);
    return v;
}

template <class V, class T>
[[gnu::always_inline]] inline void store(V v, T* y) {
    __builtin_memcpy(y, &v, sizeof v);
}

// Of lanes that lie `apart`, a vector of `size` elements.
template <ptrdiff_t size, class T, size_t... i>
[[gnu::always_inline]] inline Elements<T, size> lanes_at(const T* x, ptrdiff_t apart, std::index_sequence<i...>) {
    if constexpr (size == of_lane<T>) {
        return loaded<Lane<T>>(x);
    } else {
        constexpr ptrdiff_t half = size / 2;
        constexpr std::make_index_sequence<half> of_half;
        Elements<T, half> low = lanes_at<half>(x, apart, of_half), high = lanes_at<half>(x + half / of_lane<T> * apart, apart, of_half);
        return __builtin_shufflevector(low, high, i...);
    }
}

template <ptrdiff_t lane, class V, class T, size_t... i>
[[gnu::always_inline]] inline void put_lanes(V v, T* y, ptrdiff_t apart, std::index_sequence<i...> of) {
    Lane<T> part = __builtin_shufflevector(v, v, lane * of_lane<T> + i...);
    store(part, y + lane * apart);
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
[[gnu::always_inline]] inline void turn(Vector<T>* v) {
    constexpr ptrdiff_t n = of_lane<T>;
    constexpr std::make_index_sequence<of_vector<T>> all;
#pragma GCC unroll 8
    for (ptrdiff_t step = 1; step < n; step *= 2) {
        Vector<T> of[n];
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < n; ++i) of[i] = v[i];
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < n / 2; ++i) {
            v[2 * i] = interleaved<T, 0>(of[i], of[i + n / 2], all);
            v[2 * i + 1] = interleaved<T, n / 2>(of[i], of[i + n / 2], all);
        }
    }
}

// A lane of each of a vector of rows becomes vectors.
template <class T>
[[gnu::always_inline]] inline void lanes_to_vectors(const T* x, ptrdiff_t x_apart, T* y, ptrdiff_t y_apart) {
    constexpr ptrdiff_t n = of_lane<T>;
    constexpr std::make_index_sequence<of_vector<T>> all;
    Vector<T> v[n];
#pragma GCC unroll 8
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = lanes_at<of_vector<T>>(x + i * x_apart, n * x_apart, all);
    turn<T>(v);
#pragma GCC unroll 8
    for (ptrdiff_t i = 0; i < n; ++i) store(v[i], y + i * y_apart);
}

// And back.
template <class T>
[[gnu::always_inline]] inline void vectors_to_lanes(const T* x, ptrdiff_t x_apart, T* y, ptrdiff_t y_apart) {
    constexpr ptrdiff_t n = of_lane<T>;
    constexpr std::make_index_sequence<n> all;
    Vector<T> v[n];
#pragma GCC unroll 8
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = loaded<Vector<T>>(x + i * x_apart);
    turn<T>(v);
#pragma GCC unroll 8
    for (ptrdiff_t i = 0; i < n; ++i) put_lanes<0>(v[i], y + i * y_apart, n * y_apart, all);
}

// Blocks of so many rows and columns; the last of them have some again.
template <ptrdiff_t some_rows, ptrdiff_t some_columns, class Visit>
[[gnu::always_inline]] inline void each_square(ptrdiff_t rows, ptrdiff_t columns, Visit visit) {
    for (ptrdiff_t r = 0; r < rows; r += some_rows)
        for (ptrdiff_t c = 0; c < columns; c += some_columns)
            visit(std::min(r, rows - some_rows), std::min(c, columns - some_columns));
}
#endif

// Of less than a vector, element by element. (Inlined, the loops of GCC are slower.)
template <class T>
[[gnu::noinline]] void transpose_few(const T* x, ptrdiff_t x_apart, T* y, ptrdiff_t y_apart, ptrdiff_t rows, ptrdiff_t columns) {
    if (rows < columns)
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t c = 0; c < columns; ++c) y[c * y_apart + r] = x[r * x_apart + c];
    else
        for (ptrdiff_t c = 0; c < columns; ++c)
            for (ptrdiff_t r = 0; r < rows; ++r) y[c * y_apart + r] = x[r * x_apart + c];
}

// y[c * y_apart + r] = x[r * x_apart + c].
template <class T>
void transpose(const T* x, ptrdiff_t x_apart, T* y, ptrdiff_t y_apart, ptrdiff_t rows, ptrdiff_t columns) {
#if __has_builtin(__builtin_shufflevector)
    constexpr ptrdiff_t lane = of_lane<T>, vector = of_vector<T>;
    if (rows >= vector && columns >= lane)
        return each_square<vector, lane>(rows, columns, [=](ptrdiff_t r, ptrdiff_t c) __attribute__((always_inline)) {
            lanes_to_vectors(x + r * x_apart + c, x_apart, y + c * y_apart + r, y_apart);
        });
    if (columns >= vector && rows >= lane)
        return each_square<lane, vector>(rows, columns, [=](ptrdiff_t r, ptrdiff_t c) __attribute__((always_inline)) {
            vectors_to_lanes(x + r * x_apart + c, x_apart, y + c * y_apart + r, y_apart);
        });
#endif
    transpose_few(x, x_apart, y, y_apart, rows, columns);
}

// visit(n), of a constant, for those n of which the compiler permutes rows that follow each other, faster; false of others.
template <class Visit>
bool visit_permuted(ptrdiff_t n, Visit visit) {
    auto is = [=](auto known) { return n == known ? visit(known), true : false; };
    bool visited = is(std::integral_constant<ptrdiff_t, 2>()) || is(std::integral_constant<ptrdiff_t, 3>());
    if constexpr (vector_size == 64)
        visited = visited || is(std::integral_constant<ptrdiff_t, 4>()) || is(std::integral_constant<ptrdiff_t, 8>());
    return visited;
}

// Rows of 16-bit elements that are less than a lane, as 32-bit ones.
constexpr ptrdiff_t rows_as_words = 128;

template <class T>
constexpr bool go_as_words(ptrdiff_t n) {
    return sizeof(T) == 2 && n >= of_lane<uint32_t> && n < of_lane<T>;
}

template <class T>
void words_to_columns(const T* x, T* columns, ptrdiff_t width, ptrdiff_t n, ptrdiff_t count) {
    uint32_t words[rows_as_words * of_lane<T>], turned[rows_as_words * of_lane<T>];
    for (ptrdiff_t r = 0, some; r < count; r += some) {
        some = std::min(rows_as_words, count - r);
        std::copy_n(x + r * n, some * n, words);
        transpose(words, n, turned, some, some, n);
        for (ptrdiff_t j = 0; j < n; ++j) std::copy_n(turned + j * some, some, columns + j * width + r);
    }
}

template <class T>
void words_to_rows(const T* columns, ptrdiff_t width, T* y, ptrdiff_t n, ptrdiff_t count) {
    uint32_t words[rows_as_words * of_lane<T>], turned[rows_as_words * of_lane<T>];
    for (ptrdiff_t r = 0, some; r < count; r += some) {
        some = std::min(rows_as_words, count - r);
        for (ptrdiff_t j = 0; j < n; ++j) std::copy_n(columns + j * width + r, some, words + j * some);
        transpose(words, some, turned, n, n, some);
        std::copy_n(turned, some * n, y + r * n);
    }
}

// The j-th elements of rows go to columns + j * width.
template <class T>
void to_columns(const T* x, T* columns, ptrdiff_t width, ptrdiff_t n, ptrdiff_t count) {
    bool done = visit_permuted(n, [=](auto n) {
#pragma omp simd
        for (ptrdiff_t r = 0; r < count; ++r)
            for (ptrdiff_t j = 0; j < n; ++j) columns[j * width + r] = x[r * n + j];
    });
    if (done) return;
    if (go_as_words<T>(n)) words_to_columns(x, columns, width, n, count);
    else transpose(x, n, columns, width, count, n);
}

// And back.
template <class T>
void to_rows(const T* columns, ptrdiff_t width, T* y, ptrdiff_t n, ptrdiff_t count) {
    bool done = visit_permuted(n, [=](auto n) {
#pragma omp simd
        for (ptrdiff_t r = 0; r < count; ++r)
            for (ptrdiff_t j = 0; j < n; ++j) y[r * n + j] = columns[j * width + r];
    });
    if (done) return;
    if (go_as_words<T>(n)) words_to_rows(columns, width, y, n, count);
    else transpose(columns, width, y, n, n, count);
}

}  // namespace
