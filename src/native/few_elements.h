// Products with the Jacobians of rows of a few elements, a number known to the compiler: side by side, a row's sums in registers, of
// four parts each.
#pragma once
#include "gathered.h"
#include "half_products.h"
#include "log_products.h"
#include "transpose.h"

namespace {

// Of 16-bit floats, or, with such a Result, of what was converted from them.
template <Function function, class T, ptrdiff_t n, class Result = T>
struct FewElements {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    static constexpr ptrdiff_t width = n == 2 && sizeof(T) == 2 ? 128 : 64, vector = of_vector<Work>;
    const Work *p, *v;  // the j-th elements at j * stride
    Work* y;
    ptrdiff_t p_stride, v_stride, y_stride;
    alignas(64) Work p_own[n * width], v_own[n * width], y_own[n * width];

    // Rows side by side, their elements `after` apart; or, with 1, one row after the other. to may be p or v.
    void operator()(const T* p_from, const T* v_from, T* to, ptrdiff_t after, ptrdiff_t count) {
        for (ptrdiff_t i = 0, some; i < count; i += some) {
            some = std::min(width, count - i);
            ptrdiff_t at = after > 1 ? i : n * i;
            p = read(p_from + at, p_own, p_stride, after, some);
            v = read(v_from + at, v_own, v_stride, after, some);
            y = y_own, y_stride = width;
            if constexpr (sizeof(T) > 2)
                if (after > 1 && to != p_from && to != v_from) {
                    y = to + at, y_stride = after;
                    for (ptrdiff_t j = 0; j < n; ++j) fetch<true>(y + j * after + block, some);
                }
            if (!whole_products(some)) one_by_one(some);
            if (y == y_own) write(to + at, after, some);
        }
    }

private:
    // The elements side by side: where they are, or in rows of their own, whole vectors, with the first again.
    static const Work* read(const T* x, Work* own, ptrdiff_t& stride, ptrdiff_t after, ptrdiff_t count) {
        stride = width;
        if (after == 1) {
            Work converted[n * width];
            const Work* rows = converted;
            fetch<false>(x + block, n * count);
            if constexpr (sizeof(T) == 2) widen(x, converted, n * count);
            else rows = x;
            to_columns(rows, own, width, n, count);
        } else {
            for (ptrdiff_t j = 0; j < n; ++j) {
                fetch<false>(x + j * after + block, count);
                if constexpr (sizeof(T) == 2) widen(x + j * after, own + j * width, count);
            }
            if constexpr (sizeof(T) > 2) return stride = after, x;
        }
        for (ptrdiff_t j = 0; j < n; ++j) std::fill(own + j * width + count, own + j * width + padded(count), own[j * width]);
        return own;
    }

    // Of two or three rows a vector takes longer.
    static ptrdiff_t padded(ptrdiff_t count) { return count < 4 ? count : (count + vector - 1) / vector * vector; }

    void write(T* to, ptrdiff_t after, ptrdiff_t count) {
        const Work* from = y_own;
        if (after > 1) {
            for (ptrdiff_t j = 0; j < n; ++j) {
                fetch<true>(to + j * after + block, count);
                convert(from + j * width, to + j * after, count);
            }
            return;
        }
        Work converted[n * width], *rows = converted;
        fetch<true>(to + block, n * count);
        if constexpr (sizeof(T) > 2) rows = to;
        to_rows(from, width, rows, n, count);
        if constexpr (sizeof(T) == 2) narrow(converted, to, n * count);
    }

    // In whole vectors, the last of which, where nothing is in rows of its own, goes over some again.
    bool whole_products(ptrdiff_t count) {
        if (p == p_own) return products(0, padded(count));
        ptrdiff_t rest = count < vector ? 0 : count % vector;
        return products(0, count - rest) && (rest == 0 || products(count - vector, vector));
    }

    bool products(ptrdiff_t from, ptrdiff_t count) {
        if constexpr (n == 2) return pairs(from, count);
        else if constexpr (function == LOG_SOFTMAX_VJP) return shares(from, count);
        else if constexpr (sizeof(T) == 8) return exact_means(from, count);
        else return means(from, count);
    }

    // Of two elements one gains what the other loses: without cancellation, so float32 is enough for 16 bits. False where their
    // weight is not near 1, or the result not finite.
    bool pairs(ptrdiff_t from, ptrdiff_t count) {
        using Wide = std::conditional_t<sizeof(Result) == 2, float, double>;
        const Work *p_0 = p, *v_0 = v, *p_1 = p + p_stride, *v_1 = v + v_stride;
        Work *y_0 = y, *y_1 = y + y_stride;
        std::make_signed_t<typename Format<Work>::Bits> good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = from; i < from + count; ++i) {
            Wide p = p_0[i], q = p_1[i], v = v_0[i], w = v_1[i], weight = p + q, gain, loss;
            if constexpr (function == LOG_SOFTMAX_VJP) {
                v = counted(p, v), w = counted(q, w);
                Wide less = p * w;
                gain = loss = fma(q, v, -less) + fma(-p, w, less);
            } else {
                Wide d = mean_near_1(v - w, weight);
                if constexpr (function == SOFTMAX_VJP) gain = loss = p * (q * d);
                else gain = counted(p, q * d), loss = counted(q, p * d);
            }
            y_0[i] = static_cast<Work>(gain);
            if constexpr (function == LOG_SOFTMAX_JVP) y_1[i] = static_cast<Work>(0 - loss);
            else y_1[i] = 0 - static_cast<Work>(gain);  // which is converted already
            good &= (is_near_1(weight) ? 1 : 0) & (gain - loss == gain - loss ? 1 : 0);
        }
        return good != 0;
    }

    // Of a sum, see in_turn.
    static constexpr ptrdiff_t parts = std::min<ptrdiff_t>(n, 4);

    // False where there is more than one peak.
    bool shares(ptrdiff_t from, ptrdiff_t count) {
        const Work *ps = p, *vs = v;
        Work* ys = y;
        ptrdiff_t p_next = p_stride, v_next = v_stride, y_next = y_stride;
        std::make_signed_t<typename Format<Work>::Bits> good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = from; i < from + count; ++i) {
            double v_high[parts] = {}, v_low[parts] = {}, p_high[parts] = {}, p_low[parts] = {};
            Work p_k = 0, v_k = 0;
            Peaks<Work> peaks = 0;
#pragma GCC unroll 16
            for (ptrdiff_t j = 0; j < n; ++j) {
                Work p_j = ps[j * p_next + i], v_j = vs[j * v_next + i];
                add_other(v_high[j % parts], v_low[j % parts], p_high[j % parts], p_low[j % parts], peaks, p_j, v_j, Peaks<Work>{0});
                v_k = p_j > peak<Work> ? v_j : v_k, p_k = p_j > peak<Work> ? p_j : p_k;
            }
            if constexpr (parts > 2) {
                add_term<T>(v_high[0], v_low[0], v_high[2], v_low[2]);
                add_term<T>(p_high[0], p_low[0], p_high[2], p_low[2]);
            }
            if constexpr (parts > 3) {
                add_term<T>(v_high[1], v_low[1], v_high[3], v_low[3]);
                add_term<T>(p_high[1], p_low[1], p_high[3], p_low[3]);
            }
            add_term<T>(v_high[0], v_low[0], v_high[1], v_low[1]);
            add_term<T>(p_high[0], p_low[0], p_high[1], p_low[1]);
            double others_v = v_high[0] + v_low[0], others_p = p_high[0] + p_low[0], sum = v_high[0], sum_low = v_low[0];
            add_term<T>(sum, sum_low, static_cast<double>(v_k), 0.0);
            Work of_peak = static_cast<Work>(at_peak(p_k, v_k, others_p, others_v));
#pragma GCC unroll 16
            for (ptrdiff_t j = 0; j < n; ++j) {
                Work p_j = ps[j * p_next + i], v_j = vs[j * v_next + i];
                Work plain = less_share<Work, double>(p_j, v_j, sum, sum_low);
                ys[j * y_next + i] = p_j > peak<Work> ? of_peak : plain;
            }
            good &= peaks <= one_peak ? 1 : 0;
        }
        return good != 0;
    }

    // Of float64, see sum_of. False where the mean is not finite, or no element counts.
    bool exact_means(ptrdiff_t from, ptrdiff_t count) {
        const Work *ps = p, *vs = v;
        Work* ys = y;
        ptrdiff_t p_next = p_stride, v_next = v_stride, y_next = y_stride;
        int64_t good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = from; i < from + count; ++i) {
            double p_k = ps[i], v_k = vs[i];
#pragma GCC unroll 16
            for (ptrdiff_t j = 1; j < n; ++j) {
                double p_j = ps[j * p_next + i], v_j = vs[j * v_next + i];
                bool is_larger = p_j > p_k;
                v_k = is_larger ? v_j : v_k, p_k = is_larger ? p_j : p_k;
            }
            double high[parts] = {}, low[parts] = {};
#pragma GCC unroll 16
            for (ptrdiff_t j = 0; j < n; ++j) {
                double p_j = ps[j * p_next + i], h = vs[j * v_next + i] - v_k, value = p_j * h, error = fma(p_j, h, -value);
                if (j < parts) high[j] = value, low[j] = error;
                else accumulate(high[j % parts], low[j % parts], value, error);
            }
            if constexpr (parts > 2) accumulate(high[0], low[0], high[2], low[2]);
            if constexpr (parts > 3) accumulate(high[1], low[1], high[3], low[3]);
            accumulate(high[0], low[0], high[1], low[1]);
            double mean = high[0] + low[0];
            put_products(ys, ps, vs, y_next, p_next, v_next, i, v_k, mean);
            good &= (p_k > 0 ? 1 : 0) & (mean - mean == 0 ? 1 : 0);
        }
        return good != 0;
    }

    // Of others, see `weighted` and, for 16 bits, half_weighted. False where the mean is not finite, or the weight not near 1.
    bool means(ptrdiff_t from, ptrdiff_t count) {
        const Work *ps = p, *vs = v;
        Work* ys = y;
        ptrdiff_t p_next = p_stride, v_next = v_stride, y_next = y_stride;
        int32_t good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = from; i < from + count; ++i) {
            constexpr ptrdiff_t some = n < 4 ? 1 : 4, whole = n / some * some;
            double reference = 0, sum[some] = {}, weight[some] = {};
            if constexpr (adds_exactly<Result>) {
                Work more_than_1 = -1;
#pragma GCC unroll 16
                for (ptrdiff_t j = 0; j < n; ++j) {
                    Work p_j = ps[j * p_next + i];
                    sum[j < whole ? j % some : 0] += p_j * vs[j * v_next + i], more_than_1 += p_j;
                }
                weight[0] = more_than_1 + 1.0;
            } else {
                float v_r = 0;
#pragma GCC unroll 16
                for (ptrdiff_t j = n - 1; j >= 0; --j) {
                    float p_j = ps[j * p_next + i], v_j = vs[j * v_next + i];
                    v_r = p_j >= negligible || j == n - 1 ? v_j : v_r;
                }
                reference = v_r;
#pragma GCC unroll 16
                for (ptrdiff_t j = 0; j < n; ++j) {
                    double p_j = ps[j * p_next + i], d = vs[j * v_next + i] - reference;
                    ptrdiff_t to = j < whole ? j % some : 0;
                    sum[to] = fma(p_j, d, sum[to]), weight[to] += p_j;
                }
                if constexpr (some == 4) weight[0] = (weight[0] + weight[1]) + (weight[2] + weight[3]);
            }
            if constexpr (some == 4) sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            double mean = mean_near_1(sum[0], weight[0]);
            if constexpr (sizeof(Result) == 2) {
                float c, rest;
                put_half<Result>(c, rest, reference, mean);
                put_products(ys, ps, vs, y_next, p_next, v_next, i, c, rest);
            } else {
                put_products(ys, ps, vs, y_next, p_next, v_next, i, reference, mean);
            }
            good &= (is_near_1(weight[0]) ? 1 : 0) & (mean - mean == 0 ? 1 : 0);
        }
        return good != 0;
    }

    template <class Wide>
    [[gnu::always_inline]] static inline void put_products(Work* y, const Work* p, const Work* v, ptrdiff_t y_next, ptrdiff_t p_next,
                                                           ptrdiff_t v_next, ptrdiff_t i, Wide reference, Wide mean) {
#pragma GCC unroll 16
        for (ptrdiff_t j = 0; j < n; ++j)
            y[j * y_next + i] = product_of<function>(p[j * p_next + i], v[j * v_next + i] - reference, mean);
    }

    void one_by_one(ptrdiff_t count) {
        for (ptrdiff_t i = 0; i < count; ++i) {
            if (products(i, 1)) continue;
            Work row_p[n], row_v[n], row_y[n];
            for (ptrdiff_t j = 0; j < n; ++j) row_p[j] = p[j * p_stride + i], row_v[j] = v[j * v_stride + i];
            if constexpr (function == LOG_SOFTMAX_VJP) log_softmax_vjp(row_p, row_v, row_y, n, 1, false);
            else if constexpr (sizeof(T) == 8) product_with_jacobian<function, double>(row_p, row_v, row_y, n, 1, nullptr);
            else short_products<function>(row_p, row_v, row_y, n, 1);
            for (ptrdiff_t j = 0; j < n; ++j) y[j * y_stride + i] = row_y[j];
        }
    }
};

// Rows, `after` side by side or one after the other, of n elements, from 2 to a few.
template <Function function, class Result, class T, ptrdiff_t n = few>
void few_element_products(const T* p, const T* v, T* y, ptrdiff_t of, ptrdiff_t after, ptrdiff_t count) {
    if (of == n) {
        FewElements<function, T, n, Result> rows;  // a temporary one would be filled with zeros
        rows(p, v, y, after, count);
    } else if constexpr (n > 2) {
        few_element_products<function, Result, T, n - 1>(p, v, y, of, after, count);
    }
}

}  // namespace
