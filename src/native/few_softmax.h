// Rows of a few elements, a number known to the compiler: softmax of them, side by side, all of a row in registers; and the choice
// between it and their logarithms.
#pragma once
#include "few_logs.h"

namespace {

// Longer columns are not computed here, nor longer rows, which must be laid side by side.
template <class Result>
constexpr ptrdiff_t few_in_column = sizeof(Result) == 8 ? 18 : sizeof(Result) == 4 ? 6 : 10;
template <class Result>
constexpr ptrdiff_t few_in_row = sizeof(Result) == 8 ? 18 : 4;

template <class Result>
using FewWork = std::conditional_t<sizeof(Result) == 2, float, double>;

template <class Result, class T>
bool are_tame(const T* x, ptrdiff_t n, double temperature) {
    return farthest(x, n) <= magnitude(static_cast<T>(Rate<FewWork<Result>>(temperature).tame));
}

constexpr ptrdiff_t few_columns_width = 64;

// Of tame columns of n elements, with the arithmetic of other short ones; y may be x.
template <ptrdiff_t n, class Result, class T>
void few_softmax(const T* x, T* y, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    using Work = FewWork<Result>;
    constexpr bool wider = sizeof(Result) < sizeof(Work);  // than the result: no tails are needed
    const Rate<Work> rate(temperature);
#pragma omp simd
    for (ptrdiff_t i = 0; i < count; ++i) {
        Work e[n], tail[n];
        double high[4] = {}, low[4] = {};  // in four parts, see in_turn
#pragma GCC unroll 18
        for (ptrdiff_t j = 0; j < n; ++j) {
            put(e[j], tail[j], power<Result>(static_cast<Work>(x[j * x_stride + i]), rate));
            if (j < 4) high[j] = e[j], low[j] = wider ? 0 : tail[j];
            else add_term<T, double>(high[j % 4], low[j % 4], e[j], wider ? 0 : tail[j]);
        }
        if constexpr (n > 2) add_term<T>(high[0], low[0], high[2], low[2]);
        if constexpr (n > 3) add_term<T>(high[1], low[1], high[3], low[3]);
        add_term<T>(high[0], low[0], high[1], low[1]);
        Work by, by_low;
        put(by, by_low, scale_of<Result, Work>({high[0], low[0]}));
        T results[n];
#pragma GCC unroll 18
        for (ptrdiff_t j = 0; j < n; ++j)
            results[j] = static_cast<T>(wider ? e[j] * by : scaled<Work>({e[j], tail[j]}, by, by_low));
#pragma GCC unroll 18
        for (ptrdiff_t j = 0; j < n; ++j) y[j * y_stride + i] = results[j];
    }
}

// Of n elements, from 2 to `longest`.
template <class T, class Result, ptrdiff_t longest = few_in_column<Result>>
void few_softmax(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if (n == longest) return few_softmax<longest, Result>(x, y, x_stride, y_stride, count, temperature);
    if constexpr (longest > 2) few_softmax<T, Result, longest - 1>(x, y, n, x_stride, y_stride, count, temperature);
}

template <Function function, class T, class Result = T>
constexpr bool is_few(ptrdiff_t n) {
    return n >= 2 && n <= (function == SOFTMAX ? few_in_column<Result> : most_few_logs<function, T, Result>);
}

// The function of such columns; false, and nothing written, where softmax of one is not tame, or its logarithm not finite.
template <Function function, class Result, class T>
bool few_of_columns(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if constexpr (function != SOFTMAX) return few_logs<function, T, Result>(x, y, n, x_stride, y_stride, count, temperature);
    for (ptrdiff_t j = 0; j < n; ++j)
        if (!are_tame<Result>(x + j * x_stride, count, temperature)) return false;
    few_softmax<T, Result>(x, y, n, x_stride, y_stride, count, temperature);
    return true;
}

// Of up to few_rows_width rows; false, and nothing written, where one is not tame.
template <class Result, class T>
bool few_softmax_of_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t count, double temperature) {
    constexpr ptrdiff_t width = few_rows_width, longest = few_in_row<Result>;
    if (!are_tame<Result>(x, n * count, temperature)) return false;
    alignas(64) T columns[longest * width];
    ptrdiff_t whole = side_by_side<longest>(x, columns, n, count);
    few_softmax<T, Result, longest>(columns, columns, n, width, width, whole, temperature);
    row_by_row<longest>(columns, y, n, count);
    return true;
}

}  // namespace
