// log_softmax and logsumexp of rows of a few elements, mostly a number known to the compiler: side by side, all of a row in registers.
#pragma once
#include "short_rows.h"
#include "transpose.h"

namespace {

// Whether float32 is enough: nothing cancels in log_softmax.
template <Function function, class Result>
constexpr bool are_half_logs = function == LOG_SOFTMAX && sizeof(Result) == 2;

// Longer ones are not computed here.
template <Function function, class T, class Result = T>
constexpr ptrdiff_t most_few_logs = are_half_logs<function, Result> ? 31 : sizeof(T) == 8 ? 15 : 10;

// So many are computed for `count` columns: whole vectors, since loops over a few elements more are slow.
inline ptrdiff_t whole_vectors(ptrdiff_t count) { return (count + lanes - 1) / lanes * lanes; }

// Whether the largest of each of some columns is finite, and the first not NaN.
template <ptrdiff_t n, class T>
bool are_finite(const T* x, ptrdiff_t stride, ptrdiff_t count) {
    Magnitude<T> all = 1;
#pragma omp simd reduction(& : all)
    for (ptrdiff_t i = 0; i < count; ++i) {
        T m = x[i];
        for (ptrdiff_t j = 1; j < n; ++j) m = x[j * stride + i] > m ? x[j * stride + i] : m;
        all &= m - m == 0 ? 1 : 0;
    }
    return all != 0;
}

// Of columns, `x_stride` and `y_stride` apart; y may be x. Powers are doubles, or floats, see are_half_logs.
template <Function function, class T, ptrdiff_t n, class Result>
struct FewLogs {
    static constexpr bool wider = sizeof(T) < sizeof(double);  // than the result: no tails are needed
    using Work = std::conditional_t<are_half_logs<function, Result>, float, double>;

    const T* x;
    ptrdiff_t x_stride;
    Rate<Work> rate;
    Inverse<Work> inverse;

    FewLogs(const T* x, ptrdiff_t x_stride, double temperature) : x(x), x_stride(x_stride), rate(temperature), inverse(temperature) {}

    // False, and nothing written, where the largest of a column is not finite, or the first NaN.
    bool operator()(T* y, ptrdiff_t y_stride, ptrdiff_t count) const {
        constexpr bool are_pairs = n == 2;
        if constexpr (!are_pairs)
            if (are_tame(count)) return put<true>(y, y_stride, count), true;
        if (!are_finite<n>(x, x_stride, count)) return false;
        if constexpr (are_pairs) put_pairs(y, y_stride, count);
        else put<false>(y, y_stride, count);
        return true;
    }

private:
    bool are_tame(ptrdiff_t count) const {
        Magnitude<T> far = 0;
        for (ptrdiff_t j = 0; j < n; ++j) far = std::max(far, farthest(x + j * x_stride, count));
        return far <= magnitude(static_cast<T>(rate.tame));
    }

    void put_pairs(T* y, ptrdiff_t y_stride, ptrdiff_t count) const {
        const T *x_0 = x, *x_1 = x + x_stride;
        T *y_0 = y, *y_1 = y + y_stride;
        const Rate<Work> r = rate;
        const Inverse<Work> inv = inverse;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            Work a = x_0[i], b = x_1[i], more = a > b ? a : b, less = a > b ? b : a;
            Work log, log_low = 0;
            if constexpr (wider) {
                Work e = power_below<Result>(less - more, r);
                log = e * polynomial<log1p_to_1<Work>>(e);
            } else {
                Pair of_both = log_of_pair(less, more, r, inv.half * inv.high);
                log = of_both.high, log_low = of_both.low;
            }
            if constexpr (function == LOGSUMEXP) {
                y_0[i] = wider ? static_cast<T>(more + log) : shifted(static_cast<T>(more), {log, log_low});
            } else {
                if constexpr (!wider) log += log_low;
                T of_more = static_cast<T>(-log), of_less = static_cast<T>(log_probability<T, Work>(less, more, inv, log));
                y_0[i] = a < b ? of_less : of_more;
                y_1[i] = a < b ? of_more : of_less;
            }
        }
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
                ::put(c, limit, bias, Shift<double>(static_cast<double>(m), r));
                m = xs[i];
            }
            double top, top_tail, others = 0, others_low = 0;
            ::put(top, top_tail, power_of<T, tame ? TAME : ALL>(static_cast<double>(m), Shift<double>(c, limit, bias), r));
#pragma GCC unroll 16
            for (ptrdiff_t j = 1; j < n; ++j) {
                T x_j = xs[j * next + i];
                double e, tail;
                ::put(e, tail, power_of<T, tame ? TAME : ALL>(static_cast<double>(x_j), Shift<double>(c, limit, bias), r));
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

// log_softmax of columns of n elements, 16-bit floats that became float32: whole vectors. False where the largest of one is not
// finite, or the first NaN.
template <class Half, class Number>
bool half_logs(const float* x, float* y, Number n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    const Rate<float> rate(temperature);
    const Inverse<float> inverse(temperature);
    for (ptrdiff_t c = 0; c < count; c += lanes) {
        float m[lanes], others[lanes], equal[lanes], log[lanes];
        int32_t are_finite = 1;
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) m[l] = x[c + l], others[l] = 0, equal[l] = -1;
        for (ptrdiff_t j = 1; j < n; ++j) {
            const float* row = x + j * x_stride + c;
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) m[l] = row[l] > m[l] ? row[l] : m[l];
        }
        for (ptrdiff_t j = 0; j < n; ++j) {
            const float* row = x + j * x_stride + c;
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) {
                float d = row[l] - m[l], e = power_below<Half>(d, rate);
                others[l] += d == 0 ? 0 : e, equal[l] += d == 0 ? 1 : 0;
            }
        }
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) log[l] = log1p_of(others[l] + equal[l]);
#pragma omp simd reduction(& : are_finite)
        for (ptrdiff_t l = 0; l < lanes; ++l) are_finite &= m[l] - m[l] == 0 ? 1 : 0;
        if (!are_finite) return false;
        for (ptrdiff_t j = 0; j < n; ++j) {
            const float* row = x + j * x_stride + c;
            float* to = y + j * y_stride + c;
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) to[l] = log_probability<float, float>(row[l], m[l], inverse, log[l]);
        }
    }
    return true;
}

// So many are known to the compiler.
template <class T>
constexpr ptrdiff_t most_known = sizeof(T) == 8 ? 15 : 10;

// visit(n), of n from 2 to `most` as a constant.
template <ptrdiff_t most, class Visit>
auto with_constant(ptrdiff_t n, Visit visit) {
    if constexpr (most > 2)
        if (n < most) return with_constant<most - 1>(n, visit);
    return visit(std::integral_constant<ptrdiff_t, most>());
}

// Of columns of n elements, from 2 to `longest`; T may be wider than the Result, and then they are whole vectors.
template <Function function, class T, class Result = T, ptrdiff_t longest = most_few_logs<function, T, Result>>
bool few_logs(const T* x, T* y, ptrdiff_t n, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t count, double temperature) {
    if constexpr (are_half_logs<function, Result> && longest > 2) {
        if (n == 2) return few_logs<function, T, Result, 2>(x, y, n, x_stride, y_stride, count, temperature);
        auto logs = [=](auto n) { return half_logs<Result>(x, y, n, x_stride, y_stride, count, temperature); };
        return n > most_known<T> ? logs(n) : with_constant<most_known<T>>(n, logs);
    } else {
        if (n == longest) return FewLogs<function, T, longest, Result>(x, x_stride, temperature)(y, y_stride, count);
        if constexpr (longest > 2) return few_logs<function, T, Result, longest - 1>(x, y, n, x_stride, y_stride, count, temperature);
        return false;
    }
}

// Rows lie side by side in scratch, so many at a time.
constexpr ptrdiff_t few_rows_width = 128;

// Lays rows so, in whole vectors, which it returns.
template <class T>
ptrdiff_t side_by_side(const T* x, T* columns, ptrdiff_t n, ptrdiff_t count) {
    constexpr ptrdiff_t width = few_rows_width;
    ptrdiff_t whole = whole_vectors(count);
    to_columns(x, columns, width, n, count);
    for (ptrdiff_t j = 0; j < n; ++j) std::fill(columns + j * width + count, columns + j * width + whole, T(0));
    return whole;
}

// Of up to few_rows_width rows.
template <Function function, class T, class Result = T>
bool few_logs_of_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t count, double temperature) {
    constexpr ptrdiff_t width = few_rows_width, longest = most_few_logs<function, T, Result>;
    if (count == 1 && sizeof(T) == sizeof(Result)) return few_logs<function, T, Result>(x, y, n, 1, 1, 1, temperature);
    alignas(64) T columns[longest * width], results[longest * width];
    fetch<false>(x + n * count, n * count);
    if (function != LOGSUMEXP) fetch<true>(y + n * count, n * count);
    ptrdiff_t whole = side_by_side(x, columns, n, count);
    if (!few_logs<function, T, Result>(columns, results, n, width, width, whole, temperature)) return false;
    if (function == LOGSUMEXP) std::copy_n(results, count, y);
    else to_rows(results, width, y, n, count);
    return true;
}

}  // namespace
