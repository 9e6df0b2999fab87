// Rows that are columns, or strided, or of 16-bit floats: some at a time, they become rows in scratch, and go back from there.
#pragma once
#include <algorithm>

#include "half.h"
#include "kernels.h"
#include "transpose.h"

namespace {

template <class T, class To>
[[gnu::always_inline]] inline void convert(const T* x, To* y, ptrdiff_t n) {
    if constexpr (std::is_same_v<T, To>) std::copy_n(x, n, y);
    else if constexpr (sizeof(T) < sizeof(To)) widen(x, y, n);
    else narrow(x, y, n);
}

template <class T>
[[gnu::always_inline]] inline auto as_number(T* x) {
    if constexpr (sizeof(T) == 2) return &x->bits;  // of structs there are no vectors
    else return x;
}

// By whole pieces, the last of which may copy some of them again. A call of memcpy for so few would take longer.
template <ptrdiff_t piece = 16, class T>
[[gnu::always_inline]] inline void copy_few(const T* x, T* y, ptrdiff_t n) {
    if constexpr (piece > 1)
        if (n < piece) return copy_few<piece / 2>(x, y, n);
    for (ptrdiff_t i = 0; i + piece < n; i += piece) __builtin_memcpy(y + i, x + i, piece * sizeof(T));
    __builtin_memcpy(y + n - piece, x + n - piece, piece * sizeof(T));
}

constexpr ptrdiff_t side = 32;  // of squares that are converted together

// n elements that are `stride` apart; those of 16 bits are converted when they lie together.
template <class T, class To>
void gather_strided(const T* x, ptrdiff_t stride, To* y, ptrdiff_t n) {
    if (stride == 1) return convert(x, y, n);
    if constexpr (std::is_same_v<T, To>) {
        auto copy = [=](auto apart) __attribute__((always_inline)) {
#pragma omp simd
            for (ptrdiff_t j = 0; j < n; ++j) {
                if constexpr (sizeof(T) == 2) y[j].bits = x[j * apart].bits;  // of structs GCC makes no vectors
                else y[j] = x[j * apart];
            }
        };
        switch (stride) {  // those that are known in vectors
            case -1: return copy(std::integral_constant<ptrdiff_t, -1>());
            case 2: return copy(std::integral_constant<ptrdiff_t, 2>());
            case 3: return copy(std::integral_constant<ptrdiff_t, 3>());
            case 4: return copy(std::integral_constant<ptrdiff_t, 4>());
            default: copy(stride);
        }
    } else {
        T part[side * side];
        for (ptrdiff_t j = 0, some; j < n; j += some) {
            some = std::min(side * side, n - j);
            gather_strided(x + j * stride, stride, part, some);
            convert(part, y + j, some);
        }
    }
}

// And back.
template <class T, class To>
void scatter_strided(const T* x, To* y, ptrdiff_t stride, ptrdiff_t n) {
    if (stride == 1) return convert(x, y, n);
    if constexpr (std::is_same_v<T, To>) {
        for (ptrdiff_t j = 0; j < n; ++j) y[j * stride] = x[j];
    } else {
        To part[side * side];
        for (ptrdiff_t j = 0, some; j < n; j += some) {
            some = std::min(side * side, n - j);
            convert(x + j, part, some);
            scatter_strided(part, y + j * stride, stride, some);
        }
    }
}

// Elements of 16 bits are converted when they lie together, a square or, of a few columns, as many at a time.
template <class Visit>
void each_piece(ptrdiff_t n, ptrdiff_t columns, Visit visit) {
    ptrdiff_t some = std::min(side, columns), length = side * side / some;
    for (ptrdiff_t j = 0; j < n; j += length)
        for (ptrdiff_t c = 0; c < columns; c += some) visit(j, c, std::min(length, n - j), std::min(some, columns - c));
}

// `columns` neighbours of x, of n elements that are `after` apart, to rows of y that are `apart`. All that there are, are rows themselves.
template <class T>
void gather(const T* x, ptrdiff_t after, T* y, ptrdiff_t apart, ptrdiff_t n, ptrdiff_t columns) {
    if (after == columns) to_columns(x, y, apart, columns, n);
    else transpose(x, after, y, apart, n, columns);
}

// And back.
template <class T>
void scatter(const T* x, ptrdiff_t apart, T* y, ptrdiff_t after, ptrdiff_t n, ptrdiff_t columns) {
    if (after == columns) to_rows(x, apart, y, columns, n);
    else transpose(x, apart, y, after, columns, n);
}

// The same, to rows that follow each other, of another type too.
template <class T, class To>
void gather(const T* x, ptrdiff_t after, To* y, ptrdiff_t n, ptrdiff_t columns) {
    if (columns == 1) return gather_strided(x, after, y, n);
    if constexpr (std::is_same_v<T, To>) {
        gather(as_number(x), after, as_number(y), n, n, columns);
    } else {
        each_piece(n, columns, [=](ptrdiff_t j, ptrdiff_t c, ptrdiff_t length, ptrdiff_t some) {
            T part[side * side];
            gather(as_number(x + j * after + c), after, as_number(part), length, length, some);
            for (ptrdiff_t k = 0; k < some; ++k) convert(part + k * length, y + (c + k) * n + j, length);
        });
    }
}

// And back.
template <class T, class To>
void scatter(const T* x, To* y, ptrdiff_t after, ptrdiff_t n, ptrdiff_t columns) {
    if (columns == 1) return scatter_strided(x, y, after, n);
    if constexpr (std::is_same_v<T, To>) {
        scatter(as_number(x), n, as_number(y), after, n, columns);
    } else {
        each_piece(n, columns, [=](ptrdiff_t j, ptrdiff_t c, ptrdiff_t length, ptrdiff_t some) {
            To part[side * side];
            for (ptrdiff_t k = 0; k < some; ++k) convert(x + (c + k) * n + j, part + k * length, length);
            scatter(as_number(part), length, as_number(y + j * after + c), after, length, some);
        });
    }
}

// A row whose elements are `stride` apart, and, side by side with it, some others.
template <class T>
struct Strided {
    const T* x;
    ptrdiff_t stride;

    const T* at(ptrdiff_t j) const { return x + j * stride; }
    // n elements of the c-th of them.
    template <class To>
    void gather(ptrdiff_t c, ptrdiff_t from, To* y, ptrdiff_t n) const {
        gather_strided(at(from) + c, stride, y, n);
    }
};

template <class T>
Strided<T> strided_row(const void* x, const Layout& layout, ptrdiff_t row) {
    return {reinterpret_cast<const T*>(static_cast<const char*>(x) + layout.offset(row)), layout.stride() / ptrdiff_t{sizeof(T)}};
}

// Some rows of an array with a layout, from `first` on: those that are equally far apart at a time.
template <class T, class To>
void gather_rows(const void* x, const Layout& layout, ptrdiff_t first, To* y, ptrdiff_t n, ptrdiff_t count) {
    if (layout.is_one_row(n)) return strided_row<T>(x, layout, first).gather(0, 0, y, n * count);
    constexpr ptrdiff_t size = sizeof(T), small = 64;
    const ptrdiff_t equally = layout.shape[layout.ndim - 2], apart = layout.strides[layout.ndim - 2] / size;
    const bool side_by_side = layout.neighbours(size) > 1, few = layout.stride() == size && n <= small;
    auto gather_row = [=](const T* from, ptrdiff_t stride, To* to) {
        if constexpr (std::is_same_v<T, To>)
            if (few) return copy_few(from, to, n);
        gather_strided(from, stride, to, n);
    };
    for (ptrdiff_t end = first + count, some; first < end; first += some, y += some * n) {
        some = std::min(equally - first % equally, end - first);
        Strided<T> row = strided_row<T>(x, layout, first);
        if (side_by_side) gather(row.x, row.stride, y, n, some);
        else
            for (ptrdiff_t r = 0; r < some; ++r) gather_row(row.x + r * apart, row.stride, y + r * n);
    }
}

// Longer rows are not gathered in scratch, which would be new memory with every call.
constexpr ptrdiff_t far_row = 1 << 19;  // bytes

// How many of them to take at a time.
template <class T>
ptrdiff_t at_a_time(const Layout& layout, ptrdiff_t n) {
    ptrdiff_t neighbours = layout.neighbours(sizeof(T));
    return neighbours > 1 ? columns_at_a_time(n, neighbours) : rows_at_a_time(n);
}

}  // namespace
