// softmax, log_softmax and logsumexp of rows, whatever their length, type, temperature, mask and place in memory.
#pragma once
#include "columns.h"
#include "few_columns.h"
#include "few_softmax.h"
#include "gathered.h"
#include "half_columns.h"
#include "half_rows.h"
#include "kernels.h"
#include "long_rows.h"
#include "masked.h"
#include "narrow_columns.h"
#include "short_rows.h"

namespace {

// A row without a finite maximum; true where that is 'invalid' (+inf, or nothing but -inf) and not just NaN.
template <Function function, class T, class Work>
bool row_without_maximum(const T* x, T* y, ptrdiff_t n, Work m) {
    const T nan(std::numeric_limits<Work>::quiet_NaN());
    bool has_nan = false;
    for (ptrdiff_t i = 0; i < n; ++i) has_nan |= std::isnan(static_cast<Work>(x[i]));
    if constexpr (function == LOGSUMEXP) {
        *y = has_nan ? nan : T(m);
        return false;
    }
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = nan;
    return !has_nan;
}

template <Function function, class T>
struct Call {
    const T* x;
    T* y;
    ptrdiff_t n;
    const double* temperature;
    ptrdiff_t stride;
    T* scratch;  // for the tails of long rows, or none
    int threads;
    bool invalid = false;

    Call(const Rows& r)
        : x(static_cast<const T*>(r.x) + r.first * r.n),
          y(static_cast<T*>(r.y) + r.first * (function == LOGSUMEXP ? 1 : r.n)),
          n(r.n),
          temperature(r.temperature + r.first * r.temperature_stride),
          stride(r.temperature_stride),
          scratch(static_cast<T*>(r.scratch)),
          threads(r.threads) {}

    void advance(ptrdiff_t rows) {
        x += rows * n;
        y += rows * (function == LOGSUMEXP ? 1 : n);
        temperature += rows * stride;
    }

    void rows(ptrdiff_t count) {
        if constexpr (function == SOFTMAX) {
            if (n <= short_row_of<function, T>) return short_softmax(count);
        } else {
            if (is_few<function, T>(n)) return few_logs(count);
            if (n <= short_row_of<function, T>) return short_rows<true>(count);
        }
        if (n <= middle_row_of<function, T>) short_rows<false>(count);
        else if constexpr (function == SOFTMAX) long_softmax(count);
        else long_logs(count);
    }

    // Where few(count) gives up on some rows, it may do for less, and one(count) for the last.
    template <class Few, class One>
    void few_rows(ptrdiff_t count, ptrdiff_t at_a_time, Few few, One one) {
        for (ptrdiff_t some; count > 0; count -= some) {
            some = std::min(count, at_a_time);
            if (few(some)) advance(some);
            else if (some > 1) few_rows(some, (some + 7) / 8, few, one);
            else one();
        }
    }

    template <class Result = T>
    void few_logs(ptrdiff_t count) {
        few_rows(count, stride ? 1 : few_rows_width, [&](ptrdiff_t some) { return few_logs_of_rows<function, T, Result>(x, y, n, some, *temperature); },
                 [&] { invalid |= row_without_maximum<function>(x, y, n, maximum(x, n)), advance(1); });
    }

    template <class Result = T>
    void short_softmax(ptrdiff_t count) {
        auto short_ones = [&](ptrdiff_t some) { short_rows<true, FewWork<Result>, Result>(some); };
        if (n < 2 || n > few_in_row<Result> || count == 1 || stride) return short_ones(count);
        few_rows(count, few_rows_width, [&](ptrdiff_t some) { return few_softmax_of_rows<Result>(x, y, n, some, *temperature); },
                 [&] { short_ones(1); });
    }

    void long_logs(ptrdiff_t count) {
        Rate<T> rate(*temperature);
        Inverse<T> inverse(*temperature);
        for (; count--; advance(1)) {
            if (stride) rate = Rate<T>(*temperature), inverse = Inverse<T>(*temperature);
            TameLog<T> row(x, n, rate, threads);
            if (!row.tame) wild_row(rate, inverse);
            else if constexpr (function == LOG_SOFTMAX) log_softmax_of(x, y, n, row.max, inverse, row.log, threads);
            else *y = shifted(row.max, row.log);
        }
    }

    void long_softmax(ptrdiff_t count) {
        Rate<T> rate(*temperature);
        Inverse<T> inverse(*temperature);
        TameRows<T> rows(n, scratch);
        for (ptrdiff_t left = count; left > 0;) {
            ptrdiff_t some = std::min(left, stride ? 1 : rows.at_a_time(n));
            if (stride) rate = Rate<T>(*temperature);
            T* e = rows.powers(x, y, n);
            rows.sum_up(x, e, some, n, rate, threads);
            for (ptrdiff_t r = 0; r < some; ++r, advance(1))
                if (rows.tame[r]) rows.result(r, x, e, y, n, rate, threads);
                else wild_row(rate, inverse, rows.tails_of(r, n));
            left -= some;
        }
    }

    void wild_row(Rate<T> rate, Inverse<T> inverse, T* tails = nullptr) {
        T m = maximum(x, n, threads);
        if (!std::isfinite(m)) invalid |= row_without_maximum<function>(x, y, n, m);
        else if constexpr (function == SOFTMAX) softmax_row(x, y, tails, n, m, rate, threads);
        else if constexpr (function == LOG_SOFTMAX) log_softmax_of(x, y, n, m, inverse, log_of_row(x, n, m, rate, threads), threads);
        else *y = shifted(m, log_of_row(x, n, m, rate, threads));
    }

    template <bool is_short, class... Types>
    void short_rows(ptrdiff_t count) {
        using Block = ShortRows<T, is_short, Types...>;
        using Work = typename Block::Work;
        Block some_rows;
        Rate<Work> rate(*temperature);
        Inverse<Work> inverse(*temperature);
        for (ptrdiff_t left = count; left > 0;) {
            if (stride) rate = Rate<Work>(*temperature), inverse = Inverse<Work>(*temperature);
            ptrdiff_t some = std::min(left, stride ? 1 : block / n), done;
            if constexpr (function == SOFTMAX) {
                done = some;
                if (some_rows.tame_powers(x, some * n, rate, y)) some_rows.template softmax<true>(y, some, n);
                else if (some_rows.wild_powers(x, 0, some, n, rate, y)) some_rows.template softmax<false>(y, some, n);
                else done = 0;
            } else {
                done = some_logs(some_rows, stride ? 1 : left, rate);
                for (ptrdiff_t r = 0; r < done; ++r) put(r, some_rows.max[r], {some_rows.high[r], some_rows.low[r]}, inverse);
            }
            advance(done);  // all at once, not row by row: that would be kept in memory
            left -= done;
            if (done > 0) continue;
            if constexpr (is_short || function == SOFTMAX)
                for (ptrdiff_t r = 0; r < some; ++r, advance(1)) wild_row(some_rows, rate, inverse);
            else long_logs(some);
            left -= some;
        }
    }

    // The logarithms of the first rows, as far as their maxima are finite, and not more than go well together: returns how many. They
    // take long, and are computed for more rows at once than the powers.
    template <class Block, class Work>
    ptrdiff_t some_logs(Block& rows, ptrdiff_t count, Rate<Work> rate) {
        constexpr ptrdiff_t together = 4096;
        ptrdiff_t at_a_time = block / n, done = 0;
        count = std::min({count, std::max(at_a_time, together / n), block});
        for (ptrdiff_t some; done < count; done += some) {
            some = std::min(at_a_time, count - done);
            const T* from = x + done * n;
            const T* to = function == LOGSUMEXP ? nullptr : y + done * n;
            if (rows.tame_powers(from, some * n, rate, to)) rows.tame_maxima(from, done, some, n, rate);
            else if (rows.wild_powers(from, done, some, n, rate, to)) rows.wild_maxima(done, some, rate);
            else break;
            rows.sums(from, done, some, n);
        }
        rows.logs(done);
        return done;
    }

    template <class Block, class Work>
    void wild_row(Block& row, Rate<Work> rate, Inverse<Work> inverse) {
        T m = Block::maximum(x, n);
        if (!std::isfinite(m)) {
            invalid |= row_without_maximum<function>(x, y, n, m);
            return;
        }
        if constexpr (function == SOFTMAX) row.softmax_of_row(x, y, n, m, rate);
        else put(0, m, row.log_of_row(x, n, m, rate), inverse);
    }

    // The result of the r-th row, with maximum m and log = log(sum(exp((x - m) / T))).
    template <class Work>
    void put(ptrdiff_t r, T m, Pair log, Inverse<Work> inverse) {
        if constexpr (function == LOGSUMEXP) y[r] = shifted(m, log);
        else short_log_softmax<T, Work>(x + r * n, y + r * n, n, m, inverse, static_cast<Work>(rounded(log)));
    }
};

template <Function function, class T>
bool contiguous_rows(const Rows& r) {
    Call<function, T> call(r);
    call.rows(r.count);
    return call.invalid;
}

// Some columns, in scratch: of any kind, and with temperatures of their own.
template <Function function, class T, Kernel of_rows>
bool gathered_columns(const Rows& r, const T* x, T* y, ptrdiff_t count, const double* temperature) {
    ptrdiff_t at_a_time = columns_at_a_time(r.n, r.after);
    auto scratch = static_cast<T*>(r.scratch), results = scratch + at_a_time * r.n;
    bool invalid = false;
    for (ptrdiff_t c = 0; c < count; c += at_a_time) {
        ptrdiff_t some = std::min(at_a_time, count - c);
        gather(x + c, r.after, scratch, r.n, some);
        Rows part{scratch, function == LOGSUMEXP ? y + c : results, some, r.n};
        part.threads = r.threads;
        part.temperature = temperature + c * r.temperature_stride;
        part.temperature_stride = r.temperature_stride;
        invalid |= of_rows(part);
        if (function != LOGSUMEXP) scatter(results, y + c, r.after, r.n, some);
    }
    return invalid;
}

// Short rows of 16-bit floats, some at a time.
template <Function function, class Half>
bool short_half_rows(const Rows& r) {
    constexpr ptrdiff_t longest = short_half_row<function>, n_results = function == LOGSUMEXP ? 1 : longest;
    float x[block * longest / 8], y[block * n_results / 8];
    bool invalid = false;
    for (ptrdiff_t i = r.first, some; i < r.first + r.count; i += some) {
        some = std::min(block / 8, r.first + r.count - i);
        ptrdiff_t n = function == LOGSUMEXP ? 1 : r.n;
        widen(static_cast<const Half*>(r.x) + i * r.n, x, some * r.n);
        Rows rows{x, y, some, r.n, r.temperature + i * r.temperature_stride, r.temperature_stride};
        Call<function, float> call(rows);
        if constexpr (function == SOFTMAX) call.template short_softmax<Half>(some);
        else if (is_few<function, float, Half>(r.n)) call.template few_logs<Half>(some);
        else call.rows(some);
        invalid |= call.invalid;
        narrow(y, static_cast<Half*>(r.y) + i * n, some * n);
    }
    return invalid;
}

template <Function function, class Half>
bool all_half_rows(const Rows& r) {
    if (r.n <= short_half_row<function>) return short_half_rows<function, Half>(r);
    Rate<float> rate(*r.temperature);
    Inverse<float> inverse(*r.temperature);
    bool invalid = false;
    for (ptrdiff_t i = r.first, done; i < r.first + r.count; i += done) {
        auto x = static_cast<const Half*>(r.x) + i * r.n;
        auto y = static_cast<Half*>(r.y) + i * (function == LOGSUMEXP ? 1 : r.n);
        if (r.temperature_stride) rate = Rate<float>(r.temperature[i]), inverse = Inverse<float>(r.temperature[i]);
        if (function != SOFTMAX && r.n <= middle_row_of<function, Half>)
            done = half_logs<function>(x, y, r.n, r.temperature_stride ? 1 : r.first + r.count - i, rate, inverse);
        else done = half_row<function, TAME>(x, y, r.n, 0, rate, inverse, static_cast<float*>(r.scratch), r.threads);
        if (done > 0) continue;
        done = 1;
        float m = half_maximum(x, r.n, r.threads);
        if (!std::isfinite(m)) invalid |= row_without_maximum<function>(x, y, r.n, m);
        else half_row<function, ALL>(x, y, r.n, m, rate, inverse, static_cast<float*>(r.scratch), r.threads);
    }
    return invalid;
}

// Rows of an array with a layout: long ones whose elements lie beside each other where they are; others gathered, some at a time,
// the longest where their results will be, or by chunks.
template <Function function, class T, Kernel of_rows>
bool strided_rows(const Rows& r) {
    const Layout& layout = r.layouts[0];
    bool in_place = layout.stride() == sizeof(T) && r.n > middle_row_of<function, T>;
    bool is_far = !in_place && r.n * static_cast<ptrdiff_t>(sizeof(T)) > far_row;
    bool invalid = false;
    for (ptrdiff_t at = r.first, some; at < r.first + r.count; at += some) {
        some = in_place ? 1 : std::min(at_a_time<T>(layout, r.n), r.first + r.count - at);
        Strided<T> row = strided_row<T>(r.x, layout, at);
        T* y = static_cast<T*>(r.y) + at * (function == LOGSUMEXP ? 1 : r.n);
        const double* temperature = r.temperature + at * r.temperature_stride;
        if constexpr (function == LOGSUMEXP && sizeof(T) > 2)
            if (is_far && some == 1 && tame_few_columns<function>(row, y, r.n, 1, *temperature, r.threads)) continue;
        T* gathered = is_far && function != LOGSUMEXP ? y : static_cast<T*>(r.scratch);
        if (!in_place) gather_rows<T>(r.x, layout, at, gathered, r.n, some);
        Rows part{in_place ? row.x : gathered, y, some, r.n, temperature, r.temperature_stride};
        part.threads = r.threads;
        if (part.x != r.scratch && r.n <= longest_kept) part.scratch = r.scratch;
        invalid |= of_rows(part);
    }
    return invalid;
}

// Columns, some at a time, and those that are not a whole vector by themselves: side by side where that goes, else gathered.
template <Function function, class T, Kernel of_rows, class SideBySide>
bool columns(const Rows& r, ptrdiff_t at_a_time, ptrdiff_t vector, SideBySide side_by_side) {
    bool invalid = false;
    auto compute = [&](ptrdiff_t first, ptrdiff_t count, ptrdiff_t offset) {
        auto x = static_cast<const T*>(r.x) + offset;
        auto y = static_cast<T*>(r.y) + (function == LOGSUMEXP ? first : offset);
        const double* temperature = r.temperature + first * r.temperature_stride;
        if (r.temperature_stride || !side_by_side(x, y, count, *temperature))
            invalid |= gathered_columns<function, T, of_rows>(r, x, y, count, temperature);
    };
    each_tile(r, at_a_time, [&](ptrdiff_t first, ptrdiff_t count, ptrdiff_t offset) {
        ptrdiff_t rest = count % vector, whole = count - rest;
        if (whole) compute(first, whole, offset);
        if (rest) compute(first + whole, rest, offset + whole);
    });
    return invalid;
}

template <Function function, class T, bool is_short>
bool columns(const Rows& r) {
    using Tile = Columns<T, is_short>;
    // The compiler computes what is not a whole vector one by one; beside many columns that does not matter.
    constexpr bool go_by_chunks = !is_short && sizeof(T) == 4;
    bool are_few = is_few<function, T>(r.n);
    bool are_split = go_by_chunks || (r.after <= Tile::width && !are_few);
    ptrdiff_t vector = are_split ? vector_size / sizeof(T) : 1;
    ptrdiff_t at_a_time = function == SOFTMAX && Tile::stores(r.n, r.after) ? columns_at_a_time(r.n, r.after) : Tile::at_a_time(r.n);
    if (function == SOFTMAX && are_few) at_a_time = few_columns_width;
    return columns<function, T, contiguous_rows<function, T>>(
        r, at_a_time, vector, [&](const T* x, T* y, ptrdiff_t count, double temperature) {
            if (!is_short && are_better_rows<function, T>(r.n, count, r.after, 2 * of_vector<T>)) return false;
            bool is_rest = count < vector && (vector_size == 64 || r.after > vector);  // with AVX2, a few alone are faster as they lie
            if constexpr (!is_short)
                if ((is_rest && go_by_chunks) || (count <= few_columns && r.n * count * static_cast<ptrdiff_t>(sizeof(T)) > near_columns))
                    return tame_few_columns<function>(Strided<T>{x, r.after}, y, r.n, count, temperature, r.threads);
            if (is_rest) return false;
            if (are_few) return few_of_columns<function, T>(x, y, r.n, r.after, r.after, count, temperature);
            return some_columns<function, T, is_short>(x, y, r.n, r.after, count, temperature, static_cast<T*>(r.scratch), r.streams);
        });
}

template <Function function, class T>
bool rows(const Rows& r) {
    if (r.layouts) return strided_rows<function, T, contiguous_rows<function, T>>(r);
    if (r.where) return r.after > 1 ? columns_where<function, T, rows<function, T>>(r) : rows_where<function, T, contiguous_rows<function, T>>(r);
    if (r.after == 1) return contiguous_rows<function, T>(r);
    if (are_narrow<T>(r)) return narrow_columns<function, T, rows<function, T>>(r);
    return r.n > short_row_of<function, T> ? columns<function, T, false>(r) : columns<function, T, true>(r);
}

template <Function function, class Half>
bool half_rows(const Rows& r) {
    if (r.layouts) return strided_rows<function, Half, all_half_rows<function, Half>>(r);
    if (r.where) return r.after > 1 ? columns_where<function, Half, half_rows<function, Half>>(r) : rows_where<function, Half, all_half_rows<function, Half>>(r);
    if (r.after == 1) return all_half_rows<function, Half>(r);
    if (are_narrow<Half>(r)) return narrow_columns<function, Half, half_rows<function, Half>>(r);
    return columns<function, Half, all_half_rows<function, Half>>(
        r, half_width, r.n > short_half_row<function> ? lanes : 1, [&](const Half* x, Half* y, ptrdiff_t count, double temperature) {
            return some_half_columns<function>(x, y, r.n, r.after, count, temperature);
        });
}

}  // namespace
