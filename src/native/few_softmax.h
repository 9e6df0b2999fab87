// Rows of a few elements, a number known to the compiler: softmax of them, side by side, all of a row in registers; and the choice
// between it and their logarithms.
#pragma once
#include "few_logs.h"

namespace {

// Longer columns are not computed here, nor longer rows, which must be laid side by side.
template <class Result>
constexpr ptrdiff_t few_in_column = sizeof(Result) == 8 ? 18 : sizeof(Result) == 4 ? 6 : 10;
template <class Result>
constexpr ptrdiff_t few_in_row = sizeof(Result) == 8 ? 18 : 8;

template <class Result>
using FewWork = std::conditional_t<sizeof(Result) == 2, float, double>;

constexpr ptrdiff_t few_columns_width = 64;

// Of columns of n elements, with the arithmetic of other short ones; y may be x. False, and nothing written, where the largest of a
// column that is not tame is not finite, or its first NaN.
template <ptrdiff_t n, class Result, class T>
struct FewSoftmax {
    using Work = FewWork<Result>;
    static constexpr bool wider = sizeof(Result) < sizeof(Work);  // than the result: no tails are needed

    const T* x;
    ptrdiff_t x_stride;
    Rate<Work> rate;

    bool operator()(T* y, ptrdiff_t y_stride, ptrdiff_t count) const {
        Magnitude<T> far = 0;
        for (ptrdiff_t j = 0; j < n; ++j) far = std::max(far, farthest(x + j * x_stride, count));
        if (far <= magnitude(static_cast<T>(rate.tame))) put<true>(y, y_stride, count);
        else if (are_finite<n>(x, x_stride, count)) put<false>(y, y_stride, count);
        else return false;
        return true;
    }

private:
    template <bool tame>
    void put(T* y, ptrdiff_t y_stride, ptrdiff_t count) const {
        const T* xs = x;
        const ptrdiff_t next = x_stride;
        const Rate<Work> r = rate;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            Work c = 0, limit = 0;
            typename Format<Work>::Bits bias = 0;
            if constexpr (!tame) {
                T m = xs[i];
#pragma GCC unroll 18
                for (ptrdiff_t j = 1; j < n; ++j) m = xs[j * next + i] > m ? xs[j * next + i] : m;
                ::put(c, limit, bias, Shift<Work>(static_cast<Work>(m), r));
            }
            Work e[n], tail[n];
            double high[4] = {}, low[4] = {};  // in four parts, see in_turn
#pragma GCC unroll 18
            for (ptrdiff_t j = 0; j < n; ++j) {
                Work x_j = static_cast<Work>(xs[j * next + i]);
                ::put(e[j], tail[j], power_of<Result, tame ? TAME : ALL>(x_j, Shift<Work>(c, limit, bias), r));
                if (j < 4) high[j] = e[j], low[j] = wider ? 0 : tail[j];
                else add_term<T, double>(high[j % 4], low[j % 4], e[j], wider ? 0 : tail[j]);
            }
            if constexpr (n > 2) add_term<T>(high[0], low[0], high[2], low[2]);
            if constexpr (n > 3) add_term<T>(high[1], low[1], high[3], low[3]);
            add_term<T>(high[0], low[0], high[1], low[1]);
            Work by, by_low;
            ::put(by, by_low, scale_of<Result, tame, Work>({high[0], low[0]}));
            T results[n];
#pragma GCC unroll 18
            for (ptrdiff_t j = 0; j < n; ++j)
                results[j] = static_cast<T>(scaled<Result, tame>(Power<Work>{e[j], tail[j]}, by, by_low));
#pragma GCC unroll 18
            for (ptrdiff_t j = 0; j < n; ++j) y[j * y_stride + i] = results[j];
        }
    }
};

// Of n elements, from 2 to `longest`.
template <class T, class Result, ptrdiff_t longest = few_in_column<Result>>
bool few_softmax(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if (n == longest) return FewSoftmax<longest, Result, T>{x, x_stride, Rate<FewWork<Result>>(temperature)}(y, y_stride, count);
    if constexpr (longest > 2) return few_softmax<T, Result, longest - 1>(x, y, n, x_stride, y_stride, count, temperature);
    return false;
}

template <Function function, class T, class Result = T>
constexpr bool is_few(ptrdiff_t n) {
    return n >= 2 && n <= (function == SOFTMAX ? few_in_column<Result> : most_few_logs<function, T, Result>);
}

// The function of such columns; false, and nothing written, where it gives up.
template <Function function, class Result, class T>
bool few_of_columns(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if constexpr (function == SOFTMAX) return few_softmax<T, Result>(x, y, n, x_stride, y_stride, count, temperature);
    else return few_logs<function, T, Result>(x, y, n, x_stride, y_stride, count, temperature);
}

// Of up to few_rows_width rows; the same.
template <class Result, class T>
bool few_softmax_of_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t count, double temperature) {
    constexpr ptrdiff_t width = few_rows_width, longest = few_in_row<Result>;
    alignas(64) T columns[longest * width];
    fetch<false>(x + n * count, n * count), fetch<true>(y + n * count, n * count);
    ptrdiff_t whole = side_by_side(x, columns, n, count);
    if (!few_softmax<T, Result, longest>(columns, columns, n, width, width, whole, temperature)) return false;
    to_rows(columns, width, y, n, count);
    return true;
}

}  // namespace
