// softmax_vjp and log_softmax_jvp along columns, side by side: each sum in the order of a contiguous row.
#pragma once
#include "half.h"
#include "products.h"

namespace {

// The elements j of `count` columns, `after` apart, to read: in place or, of 16 bits, in a row of their own.
template <class T, class Work>
[[gnu::always_inline]] inline const Work* row_of(const T* a, ptrdiff_t j, ptrdiff_t after, ptrdiff_t count, Work* own) {
    fetch<false>(a + (j + 1) * after, count);
    if constexpr (sizeof(T) > 2) {
        return a + j * after;
    } else {
        widen(a + j * after, own, count);
        return own;
    }
}

// Computed as float32: see fast_row.
template <Function function, class T>
struct ProductColumns {
    static constexpr ptrdiff_t width = sizeof(T) == 2 ? 256 : 128;
    static ptrdiff_t at_a_time(ptrdiff_t) { return width; }

    const T *p, *v;
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    alignas(64) double sum[lanes][width], weight[lanes][width];  // of a chunk
    alignas(64) double v_r[width], mean[width];
    alignas(64) float c[width], rest[width], p_row[width], v_row[width], y_row[width];

    ProductColumns(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    // Of each column the v of the first element that is not negligible.
    void references() {
        int32_t found[width], all = -1;
        const float *p_0 = row_of(p, 0, after, count, p_row), *v_0 = row_of(v, 0, after, count, v_row);
#pragma omp simd reduction(& : all)
        for (ptrdiff_t i = 0; i < count; ++i) {
            v_r[i] = v_0[i];
            found[i] = p_0[i] >= negligible ? -1 : 0;
            all &= found[i];
        }
        for (ptrdiff_t j = 1; j < n && !all; ++j) {
            const float *p_j = row_of(p, j, after, count, p_row), *v_j = row_of(v, j, after, count, v_row);
            all = -1;
#pragma omp simd reduction(& : all)
            for (ptrdiff_t i = 0; i < count; ++i) {
                v_r[i] = found[i] ? v_r[i] : v_j[i];
                found[i] |= p_j[i] >= negligible ? -1 : 0;
                all &= found[i];
            }
        }
    }

    // Adds elements j of all columns to the sums, or to 0.
    template <bool is_first>
    [[gnu::always_inline]] void add(ptrdiff_t j, ptrdiff_t lane) {
        const float *p_j = row_of(p, j, after, count, p_row), *v_j = row_of(v, j, after, count, v_row);
        double *s = sum[lane], *w = weight[lane];
        const double* reference = v_r;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            double p_i = p_j[i];
            s[i] = fma(p_i, v_j[i] - reference[i], is_first ? 0 : s[i]);
            w[i] = (is_first ? 0 : w[i]) + p_i;
        }
    }

    // The sums of some rows, as `weighted` has them.
    void add_rows(ptrdiff_t from, ptrdiff_t length) {
        ptrdiff_t parts = length > few ? lanes : length < 4 ? 1 : 4, whole = parts == 1 ? 1 : length / parts * parts;
        for (ptrdiff_t j = 0; j < parts; ++j) add<true>(from + j, j);
        for (ptrdiff_t j = parts; j < whole; ++j) add<false>(from + j, j % parts);
        for (ptrdiff_t j = whole; j < length; ++j) add<false>(from + j, length > few ? j - (length - lanes) : 0);
        if (parts == 4) {
            add_lane(0, 1), add_lane(2, 3), add_lane(0, 2);
        } else {
            for (ptrdiff_t half = parts / 2; half > 0; half /= 2)
                for (ptrdiff_t l = 0; l < half; ++l) add_lane(l, l + half);
        }
    }

    void add_lane(ptrdiff_t to, ptrdiff_t from) {
        for (ptrdiff_t i = 0; i < count; ++i) sum[to][i] += sum[from][i], weight[to][i] += weight[from][i];
    }

    // To the sums of the first chunk those of the others.
    void add_chunks() {
        double total[width], total_weight[width];
        std::copy_n(sum[0], count, total), std::copy_n(weight[0], count, total_weight);
        for (ptrdiff_t j = chunk; j < n; j += chunk) {
            add_rows(j, std::min(chunk, n - j));
            for (ptrdiff_t i = 0; i < count; ++i) total[i] += sum[0][i], total_weight[i] += weight[0][i];
        }
        std::copy_n(total, count, sum[0]), std::copy_n(total_weight, count, weight[0]);
    }

    int64_t means_of_any() {
        int64_t finite = 1;
        for (ptrdiff_t i = 0; i < count; ++i) {
            mean[i] = mean_of({sum[0][i], weight[0][i]});
            finite &= std::isfinite(mean[i]);
        }
        return finite;
    }

    // False where the mean of a column is not finite.
    bool means() {
        references();
        add_rows(0, std::min(chunk, n));
        if (n > chunk) add_chunks();
        double *of = mean, *v = v_r, *s = sum[0], *w = weight[0];
        int64_t finite = 1, near_1 = 1;
#pragma omp simd reduction(& : near_1, finite)
        for (ptrdiff_t i = 0; i < count; ++i) {
            of[i] = mean_near_1(s[i], w[i]);
            near_1 &= is_near_1(w[i]) ? 1 : 0;
            finite &= of[i] - of[i] == 0 ? 1 : 0;
        }
        if (!near_1) finite = means_of_any();
        if (n <= few) return finite != 0;
        float *high = c, *low = rest;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) put(high[i], low[i], v[i], of[i]);
        return finite != 0;
    }

    template <class Work>
    void products(T* y, const Work* less, const Work* and_less) {
        for (ptrdiff_t j = 0; j < n; ++j) {
            const float *p_j = row_of(p, j, after, count, p_row), *v_j = row_of(v, j, after, count, v_row);
            T* to = y + j * after;
            fetch<true>(to + after, count);
            float* y_j = y_row;
            if constexpr (sizeof(T) == 4) y_j = to;
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i) y_j[i] = product_of<function>(p_j[i], v_j[i] - less[i], and_less[i]);
            if constexpr (sizeof(T) == 2) narrow(y_j, to, count);
        }
    }

    void products(T* y) { n <= few ? products(y, v_r, mean) : products(y, c, rest); }
};

}  // namespace
