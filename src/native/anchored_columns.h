// The same of float64, with anchored sums; where one of some columns is not good, those that are not are taken with two-sums.
#pragma once
#include "product_columns.h"

namespace {

// Of float64, see product_with_jacobian.
template <>
struct ProductColumns<double> {
    static constexpr ptrdiff_t width = 128;
    static ptrdiff_t at_a_time(ptrdiff_t n) { return std::clamp<ptrdiff_t>((1 << 16) / n / 16 * 16, 64, width); }

    const double *p, *v;
    ptrdiff_t n, after, count;
    alignas(64) double high[lanes][width], low[lanes][width];  // of a chunk
    alignas(64) uint64_t away[width];
    alignas(64) double v_k[width], share[width], expected[width], anchor[width], sum[width], sum_low[width];

    ProductColumns(const double* p, const double* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    // Of each column, see reference_of.
    void references() {
        double most[width], key[width];
        ptrdiff_t k[width] = {};
        std::fill_n(most, count, no_index);
        for (ptrdiff_t from = 0; from < n; from += chunk) {
            std::fill_n(key, count, no_index);
            for (ptrdiff_t j = 0; j < std::min(chunk, n - from); ++j) {
                const double* p_j = p + (from + j) * after;
                fetch<false>(p_j + after, count);
                fetch<false>(v + (from + j + 1) * after, count);
#pragma omp simd
                for (ptrdiff_t i = 0; i < count; ++i) {
                    double of_j = with_index(p_j[i], static_cast<uint64_t>(j));
                    key[i] = of_j > key[i] ? of_j : key[i];
                }
            }
            for (ptrdiff_t i = 0; i < count; ++i)
                if (key[i] > most[i]) most[i] = key[i], k[i] = from + index_of(key[i]);
        }
        for (ptrdiff_t i = 0; i < count; ++i) {
            Reference reference(p[k[i] * after + i], v[k[i] * after + i], n);
            v_k[i] = reference.v, share[i] = reference.share;
        }
    }

    // Of some rows, see expected_sum.
    void expect(ptrdiff_t from, ptrdiff_t length) {
        std::fill_n(expected, count, 0.0);
        for (ptrdiff_t j = 0; j < length; ++j) {
            if (j >= sampled && std::find(expected, expected + count, 0.0) == expected + count) break;
            const double* v_j = v + (from + j) * after;
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i) {
                double width = std::fabs(v_j[i] - v_k[i]), widest = expected[i];
                expected[i] = j < sampled ? std::max(widest, width) : widest == 0 ? width : widest;
            }
        }
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            expected[i] *= share[i] * static_cast<double>(length);
            anchor[i] = anchor_for(expected[i]);
        }
    }

    // Adds elements j of all columns to a lane, or to 0, with a two-sum.
    template <bool is_first>
    [[gnu::always_inline]] void add(ptrdiff_t j, double* h, double* l) const {
        const double *p_j = p + j * after, *v_j = v + j * after, *reference = v_k;
        fetch<false>(p_j + after, count);
        fetch<false>(v_j + after, count);
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) {
            double h_i = relative<false>(p_j[i], v_j[i], reference[i]), value = p_j[i] * h_i;
            double error = fma(p_j[i], h_i, -value);
            if constexpr (is_first) h[i] = 0 + value, l[i] = 0 + error;
            else accumulate(h[i], l[i], value, error);
        }
    }

    void add_lane(ptrdiff_t to, ptrdiff_t from) {
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) accumulate(high[to][i], low[to][i], high[from][i], low[from][i]);
    }

    // The sums of some rows, as anchored_sum has them, in lane 0; false where one is not good.
    bool add_anchored_rows(ptrdiff_t from, ptrdiff_t length) {
        expect(from, length);
        length <= narrow_row ? add_strips<1>(from, length) : add_strips<lanes>(from, length);
        uint64_t good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = 0; i < count; ++i) {
            away[i] = is_anchored(away[i], high[0][i] + low[0][i], expected[i]) ? 1 : 0;
            good &= away[i];
        }
        return good;
    }

    // Of a strip of columns, the sums stay in registers; the last strip has some columns once more.
    template <ptrdiff_t parts>
    void add_strips(ptrdiff_t from, ptrdiff_t length) {
        auto add = [&](auto strip) {
            for (ptrdiff_t c = 0; c < count; c += strip) add_strip<parts>(from, length, std::min<ptrdiff_t>(c, count - strip), strip);
        };
        if (count >= 16) add(std::integral_constant<ptrdiff_t, 16>());
        else if (count >= 8) add(std::integral_constant<ptrdiff_t, 8>());
        else add(count);
    }

    // Those of high are exact, in any order; those of low are in lanes.
    template <ptrdiff_t parts, class Strip>
    [[gnu::always_inline]] void add_strip(ptrdiff_t from, ptrdiff_t length, ptrdiff_t c, Strip strip) {
        constexpr ptrdiff_t near = 8 * lanes, widest = 16;
        double h[widest], of_lane[parts][widest] = {};
        uint64_t a[widest] = {};
        std::copy_n(anchor + c, ptrdiff_t(strip), h);
        const double *ps = p + from * after + c, *vs = v + from * after + c, *reference = v_k + c, *anchors = anchor + c;
        auto add = [&](double* to, ptrdiff_t j) __attribute__((always_inline)) {
            const double *p_j = ps + j * after, *v_j = vs + j * after;
#pragma omp simd
            for (ptrdiff_t i = 0; i < ptrdiff_t(strip); ++i) add_anchored(h[i], to[i], a[i], p_j[i], v_j[i] - reference[i], anchors[i]);
        };
        ptrdiff_t whole = length / parts * parts;
        for (ptrdiff_t at = 0; at < whole; at += near)
            for (ptrdiff_t l = 0; l < parts; ++l) {
                double low_l[widest];
                std::copy_n(of_lane[l], ptrdiff_t(strip), low_l);
                for (ptrdiff_t j = at + l; j < std::min(at + near, whole); j += parts) add(low_l, j);
                std::copy_n(low_l, ptrdiff_t(strip), of_lane[l]);
            }
        for (ptrdiff_t j = whole; j < length; ++j) add(of_lane[j - length + parts], j);
        for (ptrdiff_t half = parts / 2; half > 0; half /= 2)
            for (ptrdiff_t l = 0; l < half; ++l)
#pragma omp simd
                for (ptrdiff_t i = 0; i < ptrdiff_t(strip); ++i) of_lane[l][i] += of_lane[l + half][i];
#pragma omp simd
        for (ptrdiff_t i = 0; i < ptrdiff_t(strip); ++i) high[0][c + i] = h[i] - anchors[i], low[0][c + i] = of_lane[0][i], away[c + i] = a[i];
    }

    // The sums of some rows, as sum_of_products has them, in lane 0.
    void add_rows(ptrdiff_t from, ptrdiff_t length) {
        double anchored[width], anchored_low[width];
        if (length > few) {
            if (add_anchored_rows(from, length)) return;
            std::copy_n(high[0], count, anchored), std::copy_n(low[0], count, anchored_low);
        }
        ptrdiff_t parts = length > few ? lanes : 4, used = std::min(parts, length);
        for (ptrdiff_t j = 0; j < used; ++j) add<true>(from + j, high[j], low[j]);
        for (ptrdiff_t j = used; j < length; ++j) add<false>(from + j, high[j % parts], low[j % parts]);
        for (ptrdiff_t half = parts / 2; half > 0; half /= 2)
            for (ptrdiff_t l = 0; l < std::min(half, used - half); ++l) add_lane(l, l + half);
        for (ptrdiff_t i = 0; i < count && length > few; ++i)
            if (away[i]) high[0][i] = anchored[i], low[0][i] = anchored_low[i];
    }

    // False where the mean of a column is not finite.
    [[gnu::noinline]] bool means() {
        references();
        std::fill_n(sum, count, 0.0), std::fill_n(sum_low, count, 0.0);
        for (ptrdiff_t j = 0; j < n; j += chunk) {
            add_rows(j, std::min(chunk, n - j));
            for (ptrdiff_t i = 0; i < count; ++i) accumulate(sum[i], sum_low[i], high[0][i], low[0][i]);
        }
        double* of = sum;
        const double* of_low = sum_low;
        int64_t finite = 1;
#pragma omp simd reduction(& : finite)
        for (ptrdiff_t i = 0; i < count; ++i) {
            of[i] += of_low[i];
            finite &= of[i] - of[i] == 0 ? 1 : 0;
        }
        return finite != 0;
    }

    template <Function function>
    void products(double* y) const {
        for (ptrdiff_t j = 0; j < n; ++j) {
            const double *p_j = p + j * after, *v_j = v + j * after;
            double* to = y + j * after;
            fetch<true>(to + after, count);
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i)
                to[i] = product_of<function>(p_j[i], relative<false>(p_j[i], v_j[i], v_k[i]) - sum[i]);
        }
    }
};

}  // namespace
