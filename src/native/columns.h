// Rows that lie across memory, side by side: a tile of columns at a time, each sum in the order of a contiguous row.
//
// Where one of them is not tame, all are relative to their maxima; where one of these is not finite, all are gathered and computed
// as rows. The bits are the same.
#pragma once
#include "short_rows.h"

namespace {

template <class T, bool is_short, class Working = std::conditional_t<is_short, double, T>, class Result = T>
struct Columns {
    using Work = Working;
    using Bits = typename Format<T>::Bits;
    static constexpr bool wider = sizeof(Result) < sizeof(Work), wider_work = sizeof(T) < sizeof(Work);
    static constexpr ptrdiff_t width = is_short ? 256 : 1024, lanes = is_short ? 4 : 16, kept = is_short ? short_row : 1;
    static constexpr ptrdiff_t strip = sizeof(Work) == 4 ? 128 : 256;
    static constexpr bool keeps_tails = is_short || sizeof(Work) == 8, adds_later = !keeps_tails && are_added_later<Result, Work>;

    // So many columns of n elements go well together: the powers of short ones should stay near.
    static ptrdiff_t at_a_time(ptrdiff_t n) { return is_short ? std::clamp<ptrdiff_t>(8192 / n / 64 * 64, 64, width) : width; }

    // Longer float64 columns, of which the powers and their tails still stay near, in scratch: others compute them twice.
    static constexpr bool may_store = !is_short && sizeof(T) == 8;
    static bool stores(ptrdiff_t n, ptrdiff_t after) {
        return may_store && (n <= 1024 || (n <= chunk && after <= columns_at_a_time(n, after)));
    }

    const T* x;
    ptrdiff_t used = 0;  // lanes
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    ptrdiff_t ahead;  // from an element to what is asked for
    Rate<Work> rate;
    T* stored = nullptr;  // n rows of powers, and n of their tails
    alignas(64) double high[lanes][width];  // of a chunk
    alignas(64) Work low[lanes][width];
    alignas(64) double sum[width], sum_low[width];
    alignas(64) T largest[width];  // of the logarithms, and of columns that are not tame, whose shifts follow
    Shifts<Work, width> shift;
    alignas(64) Work top[width], top_tail[width];  // its power
    alignas(64) Work value[kept][width], tail[kept][width];  // the powers of short columns; of long ones they go to y, or nowhere

    // Of arrays that no cache holds: in a tile of short columns the processor has no time to foresee the next row, so that of
    // the next tile is asked for.
    Columns(const T* x, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature, bool streams)
        : x(x), n(n), after(after), count(count), ahead(is_short && streams ? count : after), rate(temperature) {}

    // The powers and their sums; false where a column should be TAME and is not.
    template <bool keep, bool with_largest, Terms terms>
    bool powers(T* y) {
        if (terms == TAME && farthest(x, count) > magnitude(static_cast<T>(rate.tame))) return false;  // most show it at once
        if (with_largest) std::fill_n(largest, count, -std::numeric_limits<T>::infinity());
        for (ptrdiff_t j = 0; j < n; j += chunk) {
            if (!add_powers<keep, with_largest, terms>(y, j, std::min(j + chunk, n))) return false;
            if (j == 0)
                for (ptrdiff_t c = 0; c < count; ++c) sum[c] = high[0][c], sum_low[c] = wider ? 0 : low[0][c];
            else
                for (ptrdiff_t c = 0; c < count; ++c) accumulate(sum[c], sum_low[c], high[0][c], low[0][c]);
        }
        return terms != TAME || farthest(sum, count) < magnitude(Format<Work>::tame_sum);
    }

    // The maxima and what follows from them; false where one is not finite.
    bool shifts() {
        std::fill_n(largest, count, -std::numeric_limits<T>::infinity());
        for (ptrdiff_t j = 0; j < n; ++j) {
            fetch<false>(x + j * after + ahead, count);
            keep_larger(largest, x + j * after, count);
        }
        return shift.follow(largest, count, rate);
    }

    // Of the elements from j to end of all columns, with their sums in high[0] + low[0].
    template <bool keep, bool with_largest, Terms terms>
    bool add_powers(T* y, ptrdiff_t j, ptrdiff_t end) {
        used = std::min(lanes, end - j);
        ptrdiff_t first = j + used;
        const Magnitude<T> farthest = magnitude(static_cast<T>(rate.tame));
        for (; j < first; ++j)
            if (add_row<keep, with_largest, true, terms>(y, j) > farthest) return false;
        for (; j < end; ++j)
            if (add_row<keep, with_largest, false, terms>(y, j) > farthest) return false;
        add_lanes();
        return true;
    }

    // Of the j-th elements of all columns, the first of their lane or not.
    template <bool keep, bool with_largest, bool is_first, Terms terms>
    Magnitude<T> add_row(T* y, ptrdiff_t j) {
        const T* row = x + j * after;
        T *e = y + j * after, *e_tail = nullptr;
        if constexpr (keep && may_store) e = stored + j * count, e_tail = e + n * count;
        Magnitude<T> far = terms == TAME && wider_work ? farthest(row, count) : 0;  // beside the powers it would be as wide as they are
        if constexpr (with_largest && !is_short) keep_larger(largest, row, count);
        for (ptrdiff_t c = 0; c < count; c += strip) {
            ptrdiff_t length = std::min(strip, count - c);
            fetch<false>(row + ahead + c, length);
            if (keep && !may_store) fetch<true>(e + ahead + c, length);
            far = std::max(far, add_strip<keep, with_largest, is_first, terms>(row + c, e + c, e_tail + c, j, c, length, rate));
        }
        return far;
    }

    // Of the j-th elements of some columns, from c on; a copy of the rate is what no store can change.
    template <bool keep, bool with_largest, bool is_first, Terms terms>
    [[gnu::always_inline]] Magnitude<T> add_strip(const T* row, T* e, T* e_tail, ptrdiff_t j, ptrdiff_t c, ptrdiff_t length, Rate<Work> rate) {
        double* h = high[j % lanes] + c;
        Work *s = low[j % lanes] + c, *v = value[is_short ? j : 0] + c, *t = tail[is_short ? j : 0] + c;
        Work *of_largest = top + c, *its_tail = top_tail + c;
        T* m = largest + c;
        Magnitude<T> far = 0;
        Work of_strip[adds_later ? strip : 1];
#pragma omp simd reduction(max : far)
        for (ptrdiff_t i = 0; i < length; ++i) {
            if constexpr (terms == TAME && !wider_work) far = magnitude(row[i]) > far ? magnitude(row[i]) : far;
            if constexpr (is_first) h[i] = 0;
            if constexpr (is_first && !wider) s[i] = 0;
            if constexpr (!keeps_tails) {
                T r, rest, scale, p, p_tail;
                put(r, rest, scale, reduced_of<Result, terms>(row[i], shift, c + i, rate));
                if constexpr (terms == SMALLER) scale = row[i] == m[i] ? 0 : scale;
                add_power<Result, adds_later>(h[i], s[i], p, p_tail, r, rest, scale);
                if constexpr (adds_later) of_strip[i] = p;
                if constexpr (keep) e[i] = p;
                continue;
            }
            Work p, p_tail;
            put(p, p_tail, power_of<Result, terms>(static_cast<Work>(row[i]), shift, c + i, rate));
            if constexpr (terms == SMALLER) p = row[i] == m[i] ? 0 : p, p_tail = row[i] == m[i] ? 0 : p_tail;
            add_term<Result>(h[i], s[i], p, p_tail);
            if constexpr (is_short) v[i] = p;
            if constexpr (is_short && !wider) t[i] = p_tail;
            if constexpr (is_short && with_largest) {
                bool is_larger = row[i] > m[i];
                m[i] = is_larger ? row[i] : m[i];
                of_largest[i] = is_larger ? p : of_largest[i];
                if constexpr (!wider) its_tail[i] = is_larger ? p_tail : its_tail[i];
            }
            if constexpr (keep) e[i] = p, e_tail[i] = p_tail;
        }
        if constexpr (adds_later)
#pragma omp simd
            for (ptrdiff_t i = 0; i < length; ++i) h[i] += of_strip[i];
        return far;
    }

    // The sum of all lanes, in high[0] + low[0].
    void add_lanes() {
        for (ptrdiff_t half = lanes / 2; half > 0; half /= 2)
            for (ptrdiff_t l = 0; l < std::min(half, used - half); ++l)
#pragma omp simd
                for (ptrdiff_t c = 0; c < count; ++c)
                    add_term<Result>(high[l][c], low[l][c], high[l + half][c], low[l + half][c]);
    }

    template <bool keep, Terms terms>
    void softmax(T* y) {
        Work by[width], by_low[width];
        for (ptrdiff_t c = 0; c < count; ++c) put(by[c], by_low[c], scale_of<Result, terms == TAME, Work>({sum[c], sum_low[c]}));
        for (ptrdiff_t j = 0; j < n; ++j) {
            const T* row = x + j * after;
            T* e = y + j * after;
            const Work *v = value[is_short ? j : 0], *t = tail[is_short ? j : 0];
            if constexpr (keep && may_store) v = stored + j * count, t = v + n * count;
            const Rate<Work> r = rate;
            if constexpr (is_short || keep) fetch<true>(e + ahead, count);  // others compute for longer than they write
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c) {
                constexpr bool tame = terms == TAME;
                if constexpr (is_short || (keep && may_store))
                    e[c] = static_cast<T>(scaled<Result, tame>(Power<Work>{v[c], wider ? 0 : t[c]}, by[c], by_low[c]));
                else if constexpr (sizeof(T) == 4) e[c] = scaled<T, tame>(Power<T>{e[c], 0}, by[c], by_low[c]);
                else e[c] = scaled<T, tame>(power_of<Result, terms>(row[c], shift, c, r), by[c], by_low[c]);
            }
        }
    }

    // Makes of the sums log(sum(exp((x - max) / T))).
    template <Terms terms>
    void logs() {
        double equal[width];
        std::fill_n(equal, count, 0.0);
        if constexpr (terms != TAME || !is_short)
            for (ptrdiff_t c = 0; c < count; ++c)
                put(top[c], top_tail[c], power_of<Result, terms>(static_cast<Work>(largest[c]), shift, c, rate));
        keep_others<terms>(equal);
#pragma omp simd
        for (ptrdiff_t c = 0; c < count; ++c) to_log<T>(sum[c], sum_low[c], equal[c], Power<Work>{top[c], wider ? 0 : top_tail[c]});
    }

    // Of columns whose largest element outweighs the others, the sums of these.
    template <Terms terms>
    void keep_others(double* equal) {
        int64_t outweighed[width], some = 0;
#pragma omp simd reduction(+ : some)
        for (ptrdiff_t c = 0; c < count; ++c) {
            outweighed[c] = outweighs<T>(Power<Work>{top[c], 0}, sum[c], n) ? 1 : 0;
            some += outweighed[c];
        }
        if (!some) return;
        double all[width], all_low[width];
        std::copy_n(sum, count, all), std::copy_n(sum_low, count, all_low);
        if constexpr (is_short) {
            add_others();
        } else {
            if constexpr (terms == TAME) shift.put_none(count);
            T* none = nullptr;
            if (4 * some > count) powers<false, false, SMALLER>(none);
            else
                for (ptrdiff_t c = 0; c < count; ++c)
                    if (outweighed[c]) add_others_of(c);
        }
#pragma omp simd
        for (ptrdiff_t c = 0; c < count; ++c) {
            bool is = outweighed[c] != 0;
            sum[c] = is ? sum[c] : all[c], sum_low[c] = is ? sum_low[c] : all_low[c], equal[c] = is ? 1 : 0;
        }
    }

    // The sum of a column but for the largest element, as a row has it.
    void add_others_of(ptrdiff_t c) {
        T part[chunk], *none = nullptr;
        sum[c] = sum_low[c] = 0;
        for (ptrdiff_t from = 0, length; from < n; from += length) {
            length = std::min(chunk, n - from);
            for (ptrdiff_t j = 0; j < length; ++j) part[j] = x[(from + j) * after + c];
            Pair others = sum_of_powers<SMALLER, T>(part, none, length, largest[c], shift[c], rate, 1);
            accumulate(sum[c], sum_low[c], others.high, others.low);
        }
    }

    // The sums of short columns but for the largest elements, of the powers that are kept.
    void add_others() {
        for (ptrdiff_t l = 0; l < used; ++l) std::fill_n(high[l], count, 0.0), std::fill_n(low[l], count, Work(0));
        for (ptrdiff_t j = 0; j < n; ++j) {
            const T* row = x + j * after;
            double* h = high[j % lanes];
            Work *s = low[j % lanes], *v = value[j], *t = tail[j];
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c) {
                bool is_largest = row[c] == largest[c];
                add_term<Result>(h[c], s[c], is_largest ? 0 : v[c], wider || is_largest ? 0 : t[c]);
            }
        }
        add_lanes();
        for (ptrdiff_t c = 0; c < count; ++c) sum[c] = high[0][c], sum_low[c] = wider ? 0 : static_cast<double>(low[0][c]);
    }

    // (A logarithm that is subnormal is only that of the largest, lest it slows down all sums with it.)
    template <Terms terms>
    void log_softmax(T* y, Inverse<Work> inverse) const {
        Work log[width], its_own[width];
        for (ptrdiff_t c = 0; c < count; ++c) {
            its_own[c] = static_cast<Work>(sum[c] + sum_low[c]);
            log[c] = terms != TAME && its_own[c] < std::numeric_limits<T>::min() ? 0 : its_own[c];
        }
        for (ptrdiff_t j = 0; j < n; ++j) {
            const T* row = x + j * after;
            T* to = y + j * after;
            fetch<true>(to + ahead, count);
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c)
                if (terms != TAME && row[c] == largest[c]) to[c] = static_cast<T>(0 - its_own[c]);
                else to[c] = static_cast<T>(log_probability<T, Work>(row[c], largest[c], inverse, log[c]));
        }
    }
};

// What becomes of a tile; false where it should be TAME and is not.
template <Function function, Terms terms, class T, bool is_short, class... Types>
bool put_columns(Columns<T, is_short, Types...>& tile, T* y, double temperature, T* scratch) {
    using Tile = Columns<T, is_short, Types...>;
    if constexpr (function == SOFTMAX) {
        auto softmax = [&](auto keep) {
            if (!tile.template powers<keep, false, terms>(y)) return false;
            return tile.template softmax<keep, terms>(y), true;
        };
        if constexpr (Tile::may_store)
            if (Tile::stores(tile.n, tile.after)) return tile.stored = scratch, softmax(std::true_type());
        return softmax(std::bool_constant<!is_short && sizeof(T) == 4>());
    } else {
        if (!tile.template powers<false, terms == TAME, terms>(y)) return false;
        tile.template logs<terms>();
        if constexpr (function == LOG_SOFTMAX) tile.template log_softmax<terms>(y, Inverse<typename Tile::Work>(temperature));
        else
            for (ptrdiff_t c = 0; c < tile.count; ++c) y[c] = shifted(tile.largest[c], {tile.sum[c], tile.sum_low[c]});
        return true;
    }
}

// The function of some columns; false where that does not go, and y may hold anything. The scratch has room for one.
template <Function function, class T, bool is_short, class... Types>
bool some_columns(const T* x, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature, T* scratch,
                  bool streams) {
    if (count < 8 || (x == y && !is_short && sizeof(T) == 4)) return false;
    Columns<T, is_short, Types...> tile(x, n, after, count, temperature, streams);
    return put_columns<function, TAME>(tile, y, temperature, scratch) ||
           (tile.shifts() && put_columns<function, ALL>(tile, y, temperature, scratch));
}

}  // namespace
