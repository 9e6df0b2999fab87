// log_softmax and logsumexp of rows of a few elements, a number known to the compiler: side by side, all of a row in registers.
#pragma once
#include "short_rows.h"

namespace {

template <class T>
constexpr ptrdiff_t most_few_logs = sizeof(T) == 8 ? 15 : 10;

// So many are computed for `count` columns: whole vectors, since loops over a few elements more are slow.
inline ptrdiff_t whole_vectors(ptrdiff_t count) { return (count + lanes - 1) / lanes * lanes; }

// Of columns, `x_stride` and `y_stride` apart; y may be x. Powers are doubles.
template <Function function, class T, ptrdiff_t n>
struct FewLogs {
    static constexpr bool wider = sizeof(T) < sizeof(double);  // than the result: no tails are needed

    const T* x;
    ptrdiff_t x_stride;
    Rate<double> rate;
    Inverse<double> inverse;

    bool are_tame(ptrdiff_t count) const {
        Magnitude<T> far = 0;
        for (ptrdiff_t j = 0; j < n; ++j) far = std::max(far, farthest(x + j * x_stride, count));
        return far <= magnitude(static_cast<T>(rate.tame));
    }

    // Whether the largest of each column is finite, and the first not NaN.
    bool are_finite(ptrdiff_t count) const {
        const T* xs = x;
        const ptrdiff_t next = x_stride;
        Magnitude<T> all = 1;
#pragma omp simd reduction(& : all)
        for (ptrdiff_t i = 0; i < count; ++i) {
            T m = xs[i];
            for (ptrdiff_t j = 1; j < n; ++j) m = xs[j * next + i] > m ? xs[j * next + i] : m;
            all &= m - m == 0 ? 1 : 0;
        }
        return all != 0;
    }

    // The others are summed up as they are compared: each element is the largest so far, or its power is added, and when a larger
    // one comes, that of the one before.
    template <bool tame>
    void put(T* y, ptrdiff_t y_stride, ptrdiff_t count) const {
        const T* xs = x;
        const ptrdiff_t next = x_stride;
        const Rate<double> r = rate;
        const Inverse<double> inv = inverse;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            T m = xs[i];
            double c = 0, limit = 0;
            uint64_t bias = std::bit_cast<uint64_t>(1.0);
            if constexpr (!tame) {
#pragma GCC unroll 16
                for (ptrdiff_t j = 1; j < n; ++j) m = xs[j * next + i] > m ? xs[j * next + i] : m;
                double most = m;
                c = std::fabs(most) > r.near ? most : 0;
                limit = (most - c) - r.window;
                bias += (uint64_t{Format<double>::offset} - std::bit_cast<uint64_t>(fma(most - c, r.high, Format<double>::magic))) << 52;
                m = xs[i];
            }
            double top, top_tail, others = 0, others_low = 0;
            auto of = [=](T x_j) __attribute__((always_inline)) {
                double d = x_j - c;
                if constexpr (!tame) d = d < limit ? limit : d;
                return power<T>(d, bias, r.high, r.low);
            };
            ::put(top, top_tail, of(m));
#pragma GCC unroll 16
            for (ptrdiff_t j = 1; j < n; ++j) {
                T x_j = xs[j * next + i];
                double e, tail;
                ::put(e, tail, of(x_j));
                bool is_larger = x_j > m;
                double less = is_larger ? top : e, less_tail = is_larger ? top_tail : tail;
                add_term<T>(others, others_low, less, less_tail);
                m = is_larger ? x_j : m;
                top = is_larger ? e : top, top_tail = is_larger ? tail : top_tail;
            }
            double high, low;
            Pair log = log_of<T>({others, wider ? 0 : others_low}, 1, Power<double>{top, wider ? 0 : top_tail});
            high = log.high, low = log.low;
            if constexpr (function == LOGSUMEXP) {
                y[i] = shifted(m, {high, low});
            } else {
                T results[n];
#pragma GCC unroll 16
                for (ptrdiff_t j = 0; j < n; ++j) results[j] = static_cast<T>(log_probability<T, double>(xs[j * next + i], m, inv, high + low));
#pragma GCC unroll 16
                for (ptrdiff_t j = 0; j < n; ++j) y[j * y_stride + i] = results[j];
            }
        }
    }
};

template <Function function, class T>
constexpr bool is_few(ptrdiff_t n) { return function != SOFTMAX && n >= 2 && n <= most_few_logs<T>; }

// Of columns of n elements, see is_few; false, and nothing written, where the largest of one is not finite, or the first NaN.
template <Function function, class T, ptrdiff_t longest = most_few_logs<T>>
bool few_logs(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if (n < longest) {
        if constexpr (longest > 2) return few_logs<function, T, longest - 1>(x, y, n, x_stride, y_stride, count, temperature);
        return false;
    }
    FewLogs<function, T, longest> logs{x, x_stride, Rate<double>(temperature), Inverse<double>(temperature)};
    if (logs.are_tame(count)) return logs.template put<true>(y, y_stride, count), true;
    if (!logs.are_finite(count)) return false;
    return logs.template put<false>(y, y_stride, count), true;
}

// Of up to few_logs_width rows, laid side by side.
constexpr ptrdiff_t few_logs_width = 128;
template <Function function, class T>
bool few_logs_of_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t count, double temperature) {
    constexpr ptrdiff_t width = few_logs_width;
    if (count == 1) return few_logs<function>(x, y, n, 1, 1, 1, temperature);
    alignas(64) T columns[most_few_logs<T> * width], results[most_few_logs<T> * width];
    ptrdiff_t whole = whole_vectors(count), n_results = function == LOGSUMEXP ? 1 : n;
    for (ptrdiff_t r = 0; r < count; ++r)
        for (ptrdiff_t j = 0; j < n; ++j) columns[j * width + r] = x[r * n + j];
    for (ptrdiff_t j = 0; j < n; ++j) std::fill(columns + j * width + count, columns + j * width + whole, T(0));
    if (!few_logs<function>(columns, results, n, width, width, whole, temperature)) return false;
    for (ptrdiff_t r = 0; r < count; ++r)
        for (ptrdiff_t j = 0; j < n_results; ++j) y[r * n_results + j] = results[j * width + r];
    return true;
}

}  // namespace
