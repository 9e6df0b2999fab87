// Products with the Jacobians of long rows whose elements lie apart, as strided ones and those of a few columns do: chunks of them are
// gathered, for the sums and once more for the results.
#pragma once
#include "few_columns.h"
#include "log_products.h"

namespace {

template <Function function, class T>
struct FarProducts {
    static constexpr bool is_double = sizeof(T) == 8;
    using Work = std::conditional_t<is_double, double, float>;
    using Part = std::conditional_t<is_double, Pair, Weighted>;  // of a sum, see sum_of_products and `weighted`

    Strided<T> p, v;
    ptrdiff_t n, count;  // count <= few_columns neighbours of n elements
    int threads;
    Reference reference[few_columns] = {};  // of float64
    double v_r[few_columns] = {}, mean[few_columns] = {};

    // Of each column the v that others are taken relative to.
    void references() {
        if constexpr (is_double) {
            double part[chunk], most[few_columns];
            ptrdiff_t k[few_columns] = {};
            std::fill_n(most, few_columns, no_index);
            for (ptrdiff_t from = 0; from < n; from += chunk)
                for (ptrdiff_t c = 0, length = std::min(chunk, n - from); c < count; ++c) {
                    p.gather(c, from, part, length);
                    double key = largest_with_index(part, length);
                    if (key > most[c]) most[c] = key, k[c] = from + index_of(key);
                }
            for (ptrdiff_t c = 0; c < count; ++c) {
                reference[c] = Reference(p.at(k[c])[c], v.at(k[c])[c], n);
                v_r[c] = reference[c].v;
            }
        } else {
            for (ptrdiff_t c = 0; c < count; ++c) v_r[c] = static_cast<float>(v.at(first_with_weight(p.x + c, n, p.stride))[c]);
        }
    }

    // False where the mean of a column is not finite.
    bool means() {
        struct Parts {
            Part of[few_columns];
        } all{};
        references();
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                Parts parts;
                Work p_part[chunk], v_part[chunk];
                for (ptrdiff_t c = 0; c < count; ++c) {
                    p.gather(c, from, p_part, length);
                    v.gather(c, from, v_part, length);
                    if constexpr (is_double) parts.of[c] = sum_of_products(p_part, v_part, length, reference[c]);
                    else parts.of[c] = weighted(p_part, v_part, length, v_r[c]);
                }
                return parts;
            },
            [&](const Parts& parts) {
                for (ptrdiff_t c = 0; c < count; ++c) {
                    const Part& part = parts.of[c];
                    if constexpr (is_double) accumulate(all.of[c].high, all.of[c].low, part.high, part.low);
                    else all.of[c].sum += part.sum, all.of[c].weight += part.weight;
                }
            });
        bool finite = true;
        for (ptrdiff_t c = 0; c < count; ++c) {
            if constexpr (is_double) mean[c] = rounded(all.of[c]);
            else mean[c] = mean_of(all.of[c]);
            finite = finite && std::isfinite(mean[c]);
        }
        return finite;
    }

    void products(T* y, ptrdiff_t y_stride) const {
        each_chunk(n, threads, [=, this](ptrdiff_t first, ptrdiff_t length) {
            Work p_part[block], v_part[block], y_part[block];
            each_block(first, length, count, [&](ptrdiff_t c, ptrdiff_t from, ptrdiff_t some) {
                p.gather(c, from, p_part, some);
                v.gather(c, from, v_part, some);
                if constexpr (is_double) {
                    product_chunk<function, false>(p_part, v_part, y_part, some, v_r[c], mean[c]);
                } else {
                    float high, low;
                    put(high, low, v_r[c], mean[c]);
                    fast_chunk<function>(p_part, v_part, y_part, some, high, low);
                }
                scatter_strided(y_part, y + from * y_stride + c, y_stride, some);
            });
        });
    }
};

// log_softmax_vjp of the same, and of long rows of 16 bits.
template <class T>
struct LogFarProducts {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;

    Strided<T> p, v;
    ptrdiff_t n, count;  // count <= few_columns neighbours of n elements
    int threads;
    Others all[few_columns] = {};
    Work sum[few_columns] = {}, sum_low[few_columns] = {}, of_peak[few_columns] = {};

    // False where one has more than one peak.
    bool means() {
        struct Parts {
            Others of[few_columns];
        };
        ptrdiff_t at = 0;
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                Parts parts;
                Work p_part[chunk], v_part[chunk];
                for (ptrdiff_t c = 0; c < count; ++c) {
                    p.gather(c, from, p_part, length);
                    v.gather(c, from, v_part, length);
                    parts.of[c] = others(p_part, v_part, length);
                }
                return parts;
            },
            [&](const Parts& parts) {
                for (ptrdiff_t c = 0; c < count; ++c) all[c].add(parts.of[c], at);
                at += chunk;
            });
        for (ptrdiff_t c = 0; c < count; ++c) {
            if (all[c].peaks > 1) return false;
            Shares<Work> shares(all[c], static_cast<Work>(p.at(all[c].k)[c]), static_cast<Work>(v.at(all[c].k)[c]));
            sum[c] = static_cast<Work>(shares.sum.high), sum_low[c] = static_cast<Work>(shares.sum.low), of_peak[c] = shares.of_peak;
        }
        return true;
    }

    void products(T* y, ptrdiff_t y_stride) const {
        each_chunk(n, threads, [=, this](ptrdiff_t first, ptrdiff_t length) {
            Work p_part[block], v_part[block], y_part[block];
            each_block(first, length, count, [&](ptrdiff_t c, ptrdiff_t from, ptrdiff_t some) {
                p.gather(c, from, p_part, some);
                v.gather(c, from, v_part, some);
                less_share_chunk(p_part, v_part, y_part, some, sum[c], sum_low[c]);
                if (ptrdiff_t k = all[c].k - from; all[c].peaks && k >= 0 && k < some) y_part[k] = of_peak[c];
                scatter_strided(y_part, y + from * y_stride + c, y_stride, some);
            });
        });
    }
};

}  // namespace
