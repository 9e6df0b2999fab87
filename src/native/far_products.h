// Products with the Jacobians of long rows whose elements lie apart, as strided ones and those of a few columns do: chunks of them are
// gathered, for the sums and once more for the results.
#pragma once
#include "few_columns.h"
#include "log_products.h"

namespace {

// So many columns at a time: of 16 bits all that are less than a vector.
template <class T>
constexpr ptrdiff_t most_far = sizeof(T) == 2 ? most_columns : few_columns;

// Some of them, side by side or one alone, and what is done with their chunks.
template <class T>
struct FarRows {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;

    Strided<T> p, v;
    ptrdiff_t n, count;  // count <= most_far<T> neighbours of n elements
    int threads;

    // add(c, of(c, p, v, length), from) for the chunks of each column, in order.
    template <class Part, bool with_v = true, class Of, class Add>
    void add_up(Of of, Add add) const {
        struct Parts {
            Part of_column[most_far<T>];
        };
        ptrdiff_t at = 0;
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                Parts parts;
                Work p_part[chunk], v_part[chunk];
                for (ptrdiff_t c = 0; c < count; ++c) {
                    p.gather(c, from, p_part, length);
                    if constexpr (with_v) v.gather(c, from, v_part, length);
                    parts.of_column[c] = of(c, p_part, v_part, length);
                }
                return parts;
            },
            [&](const Parts& parts) {
                for (ptrdiff_t c = 0; c < count; ++c) add(c, parts.of_column[c], at);
                at += chunk;
            });
    }

    // Writes what product(c, from, p, v, y, length) puts in y for a part of a column.
    template <class Product>
    void put_products(T* y, ptrdiff_t y_stride, Product product) const {
        each_chunk(n, threads, [=, *this](ptrdiff_t first, ptrdiff_t length) {
            constexpr ptrdiff_t size = most_far<T> * block / 4;  // all of them stay in the first-level cache
            Work p_part[size], v_part[size], y_part[size];
            for (ptrdiff_t from = first, some; from < first + length; from += some) {
                some = std::min(size / count, first + length - from);
                gather(p.at(from), p.stride, p_part, some, count);
                gather(v.at(from), v.stride, v_part, some, count);
                for (ptrdiff_t c = 0, at = 0; c < count; ++c, at += some) product(c, from, p_part + at, v_part + at, y_part + at, some);
                scatter(y_part, y + from * y_stride, y_stride, some, count);
            }
        });
    }
};

template <class T>
struct FarProducts : FarRows<T> {
    static constexpr bool is_double = sizeof(T) == 8;
    using Work = typename FarRows<T>::Work;
    using Part = std::conditional_t<is_double, Pair, Weighted>;  // of a sum, see sum_of_products and `weighted`

    Reference reference[most_far<T>] = {};  // of float64
    double v_r[most_far<T>] = {}, mean[most_far<T>] = {};

    // Of each column the v that others are taken relative to.
    void references() {
        auto [p, v, n, count, threads] = static_cast<const FarRows<T>&>(*this);
        if constexpr (is_double) {
            double part[chunk], most[most_far<T>];
            ptrdiff_t k[most_far<T>] = {};
            std::fill_n(most, most_far<T>, no_index);
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

    // False where the mean of a column is not finite. (Not inlined: the same for two functions.)
    [[gnu::noinline]] bool means() {
        Part all[most_far<T>] = {};
        references();
        this->template add_up<Part>(
            [&](ptrdiff_t c, const Work* p, const Work* v, ptrdiff_t length) {
                if constexpr (is_double) return sum_of_products(p, v, length, reference[c]);
                else return weighted(p, v, length, v_r[c]);
            },
            [&](ptrdiff_t c, const Part& part, ptrdiff_t) {
                if constexpr (is_double) accumulate(all[c].high, all[c].low, part.high, part.low);
                else all[c].sum += part.sum, all[c].weight += part.weight;
            });
        bool finite = true;
        for (ptrdiff_t c = 0; c < this->count; ++c) {
            if constexpr (is_double) mean[c] = rounded(all[c]);
            else mean[c] = mean_of(all[c]);
            finite = finite && std::isfinite(mean[c]);
        }
        return finite;
    }

    template <Function function>
    void products(T* y, ptrdiff_t y_stride) const {
        this->put_products(y, y_stride, [this](ptrdiff_t c, ptrdiff_t, const Work* p, const Work* v, Work* part, ptrdiff_t some) {
            if constexpr (is_double) {
                product_chunk<function, false>(p, v, part, some, v_r[c], mean[c]);
            } else {
                float high, low;
                put(high, low, v_r[c], mean[c]);
                fast_chunk<function>(p, v, part, some, high, low);
            }
        });
    }
};

// log_softmax_vjp of the same, and of long rows of 16 bits.
template <class T>
struct LogFarProducts : FarRows<T> {
    using Work = typename FarRows<T>::Work;

    Others all[most_far<T>] = {};
    Work sum[most_far<T>] = {}, sum_low[most_far<T>] = {}, of_peak[most_far<T>] = {};

    // False where one has more than one peak.
    bool means() {
        this->template add_up<Others>([](ptrdiff_t, const Work* p, const Work* v, ptrdiff_t length) { return others(p, v, length); },
                                      [this](ptrdiff_t c, const Others& part, ptrdiff_t from) { all[c].add(part, from); });
        if (this->n > chunk && std::any_of(all, all + this->count, [](const Others& o) { return o.peaks > 0; })) {
            for (Others& o : all) o.p = {0, 0};
            this->template add_up<Pair, false>(
                [](ptrdiff_t, const Work* p, const Work*, ptrdiff_t length) { return sum_of_other_p(p, length); },
                [this](ptrdiff_t c, const Pair& part, ptrdiff_t) { accumulate(all[c].p.high, all[c].p.low, part.high, part.low); });
        }
        for (ptrdiff_t c = 0; c < this->count; ++c) {
            ptrdiff_t k = all[c].k;
            if (all[c].peaks > 1) return false;
            Shares<Work> shares(all[c], static_cast<Work>(this->p.at(k)[c]), static_cast<Work>(this->v.at(k)[c]));
            sum[c] = static_cast<Work>(shares.sum.high), sum_low[c] = static_cast<Work>(shares.sum.low), of_peak[c] = shares.of_peak;
        }
        return true;
    }

    template <Function>
    void products(T* y, ptrdiff_t y_stride) const {
        this->put_products(y, y_stride, [this](ptrdiff_t c, ptrdiff_t from, const Work* p, const Work* v, Work* part, ptrdiff_t some) {
            less_share_chunk(p, v, part, some, sum[c], sum_low[c]);
            if (ptrdiff_t k = all[c].k - from; all[c].peaks && k >= 0 && k < some) part[k] = of_peak[c];
        });
    }
};

}  // namespace
