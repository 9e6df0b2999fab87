// log_softmax_vjp along columns, side by side: each sum in the order of a contiguous row of more than a few elements.
#pragma once
#include "log_products.h"
#include "product_columns.h"

namespace {

// Those of 16 bits are computed as float32.
template <class T>
struct LogProductColumns {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    static constexpr ptrdiff_t width = sizeof(T) == 2 ? 256 : sizeof(T) == 4 ? 128 : 64;
    static ptrdiff_t at_a_time(ptrdiff_t) { return width; }

    const T *p, *v;
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    alignas(64) double v_high[lanes][width], v_low[lanes][width], p_high[lanes][width], p_low[lanes][width];  // of a chunk
    alignas(64) double v_sum[width], v_rest[width], p_sum[width], p_rest[width];
    alignas(64) Work sum[width], sum_low[width], p_row[width], v_row[width], y_row[width];
    alignas(64) Peaks<Work> peaks[width];  // of a chunk
    ptrdiff_t k[width];  // the peak, or -1

    LogProductColumns(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    // Adds elements j of all columns to a lane, or to 0.
    template <bool is_first>
    [[gnu::always_inline]] void add(ptrdiff_t j, ptrdiff_t lane) {
        const Work *p_j = row_of(p, j, after, count, p_row), *v_j = row_of(v, j, after, count, v_row);
        double *high = v_high[lane], *low = v_low[lane], *of_p = p_high[lane], *low_of_p = p_low[lane];
        Peaks<Work>*found = peaks, index = static_cast<Peaks<Work>>(j % chunk);
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            double h = is_first ? 0 : high[i], l = is_first ? 0 : low[i], h_p = is_first ? 0 : of_p[i], l_p = is_first ? 0 : low_of_p[i];
            add_other(h, l, h_p, l_p, found[i], p_j[i], v_j[i], index);
            high[i] = h, low[i] = l, of_p[i] = h_p, low_of_p[i] = l_p;
        }
    }

    // The sums of some rows, as `others` has them.
    void add_rows(ptrdiff_t from, ptrdiff_t length) {
        ptrdiff_t whole = length / lanes * lanes;
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            if (whole) add<true>(from + l, l);
            else for (auto* sums : {v_high[l], v_low[l], p_high[l], p_low[l]}) std::fill_n(sums, count, 0.0);
        }
        for (ptrdiff_t j = lanes; j < whole; ++j) add<false>(from + j, j % lanes);
        for (ptrdiff_t j = whole; j < length; ++j) add<false>(from + j, j - (length - lanes));
        for (ptrdiff_t half = lanes / 2; half > 0; half /= 2)
            for (ptrdiff_t l = 0; l < half; ++l) {
                add_pairs<Work>(v_high[l], v_low[l], v_high[l + half], v_low[l + half], count);
                add_pairs<Work>(p_high[l], p_low[l], p_high[l + half], p_low[l + half], count);
            }
    }

    template <class Result>
    static void add_pairs(double* high, double* low, const double* more, const double* more_low, ptrdiff_t count) {
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) add_term<Result>(high[i], low[i], more[i], sizeof(Result) == 8 ? more_low[i] : 0.0);
    }

    // False where a column has more than one peak.
    bool means() {
        std::fill_n(k, count, -1);
        bool several = false;
        for (ptrdiff_t from = 0; from < n; from += chunk) {
            std::fill_n(peaks, count, 0);
            add_rows(from, std::min(chunk, n - from));
            for (ptrdiff_t i = 0; i < count; ++i) {
                several |= peaks[i] >= 2 * one_peak || (peaks[i] && k[i] >= 0);
                if (peaks[i]) k[i] = from + (peaks[i] & (one_peak - 1));
            }
            if (from == 0) {
                std::copy_n(v_high[0], count, v_sum), std::copy_n(p_high[0], count, p_sum);
                std::copy_n(v_low[0], count, v_rest), std::copy_n(p_low[0], count, p_rest);
            } else {
                add_pairs<double>(v_sum, v_rest, v_high[0], v_low[0], count);
                add_pairs<double>(p_sum, p_rest, p_high[0], p_low[0], count);
            }
        }
        if (several) return false;
        for (ptrdiff_t i = 0; i < count; ++i) {
            Pair all{v_sum[i], v_rest[i]};
            accumulate(all.high, all.low, k[i] < 0 ? 0.0 : static_cast<double>(v[k[i] * after + i]), 0.0);
            sum[i] = static_cast<Work>(all.high), sum_low[i] = static_cast<Work>(all.low);
        }
        return true;
    }

    void products(T* y) {
        T of_peaks[width];
        for (ptrdiff_t i = 0; i < count; ++i)
            if (ptrdiff_t at = k[i] * after + i; k[i] >= 0)
                of_peaks[i] = static_cast<T>(static_cast<Work>(at_peak(p[at], v[at], p_sum[i] + p_rest[i], v_sum[i] + v_rest[i])));
        const Work *of_v = sum, *rest = sum_low;
        for (ptrdiff_t j = 0; j < n; ++j) {
            const Work *p_j = row_of(p, j, after, count, p_row), *v_j = row_of(v, j, after, count, v_row);
            T* to = y + j * after;
            fetch<true>(to + after, count);
            Work* y_j = y_row;
            if constexpr (sizeof(T) > 2) y_j = to;
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i) y_j[i] = less_share(p_j[i], v_j[i], of_v[i], rest[i]);
            if constexpr (sizeof(T) == 2) narrow(y_j, to, count);
        }
        for (ptrdiff_t i = 0; i < count; ++i)
            if (k[i] >= 0) y[k[i] * after + i] = of_peaks[i];
    }
};

}  // namespace
