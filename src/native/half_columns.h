// Columns of 16-bit floats, side by side: short ones as a tile of float32, the others each in the order of a row.
#pragma once
#include "columns.h"
#include "few_columns.h"
#include "few_softmax.h"
#include "half_rows.h"

namespace {

constexpr ptrdiff_t half_width = 256;  // columns at a time

// Makes a tile of float32 of some columns, and y of what becomes of it.
template <Function function, class Half>
bool short_half_columns(const Half* x, Half* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature) {
    constexpr ptrdiff_t longest = short_half_row<function>;
    alignas(64) float tile[longest * half_width], results[longest * half_width], column[longest];
    ptrdiff_t width = whole_vectors(count);
    for (ptrdiff_t j = 0; j < n; ++j) {
        widen(x + j * after, tile + j * width, count);
        std::fill(tile + j * width + count, tile + (j + 1) * width, 0.0f);
    }
    auto of_tile = some_columns<function, float, true>;
    if constexpr (function == SOFTMAX) of_tile = some_columns<SOFTMAX, float, true, float, Half>;
    bool done = is_few<function, float, Half>(n) ? few_of_columns<function, Half>(tile, results, n, width, width, width, temperature)
                                                 : of_tile(tile, results, n, width, width, temperature, column, false);
    if (!done) return false;
    for (ptrdiff_t j = 0; j < (function == LOGSUMEXP ? 1 : n); ++j) narrow(results + j * width, y + j * after, count);
    return true;
}

template <class Half>
struct HalfColumns {
    const Half* x;
    ptrdiff_t n, after, count, width;  // count <= half_width columns of n elements, `after` apart
    Rate<float> rate;
    const ptrdiff_t* picks = nullptr;  // the columns, where not all are meant
    alignas(64) float part[half_width], lane[lanes][half_width], largest[half_width];
    Shifts<float, half_width> shift;
    alignas(64) double of_chunk[half_width], sum[half_width];

    HalfColumns(const Half* x, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature)
        : x(x), n(n), after(after), count(count), width(whole_vectors(count)), rate(temperature) {
        std::fill_n(part, width, 0.0f);
    }

    // The maxima and what follows from them; false where one is not finite.
    bool shifts() {
        std::fill_n(largest, width, -std::numeric_limits<float>::infinity());
        for (ptrdiff_t j = 0; j < n; ++j) {
            fetch<false>(x + (j + 1) * after, count);
            widen(x + j * after, part, count);
            keep_larger(largest, part, width);
        }
        return shift.follow(largest, width, rate);
    }

    // The sums of the powers; false where a column should be TAME and is not.
    template <Terms terms, bool with_largest>
    bool sums() {
        if constexpr (with_largest) std::fill_n(largest, width, -std::numeric_limits<float>::infinity());
        std::fill_n(sum, width, 0.0);
        for (ptrdiff_t from = 0; from < n; from += chunk) {
            ptrdiff_t end = std::min(from + chunk, n);
            std::fill_n(of_chunk, width, 0.0);
            for (ptrdiff_t j = from; j < end; j += block)
                if (!add_block<terms, with_largest>(j, std::min(j + block, end))) return false;
            for (ptrdiff_t c = 0; c < width; ++c) sum[c] += of_chunk[c];
        }
        return terms != TAME || farthest(sum, count) < magnitude(Format<float>::tame_sum);
    }

    // As HalfPowers has them.
    template <Terms terms, bool with_largest>
    bool add_block(ptrdiff_t from, ptrdiff_t end) {
        for (float* l : lane) std::fill_n(l, width, 0.0f);
        for (ptrdiff_t j = from; j < end; ++j) {
            float* to = lane[(j - from) % lanes];
            fetch<false>(x + (j + 1) * after, count);
            if (terms == SMALLER && picks)
                for (ptrdiff_t c = 0; c < count; ++c) part[c] = x[j * after + picks[c]];
            else widen(x + j * after, part, count);
            if (with_largest) keep_larger(largest, part, width);
            const Rate<float> r = rate;
            Magnitude<float> far = 0;
#pragma omp simd reduction(max : far)
            for (ptrdiff_t c = 0; c < width; ++c) {
                if constexpr (terms == TAME) far = magnitude(part[c]) > far ? magnitude(part[c]) : far;
                float p = power_of<Half, terms>(part[c], shift, c, r).value;
                to[c] += terms != SMALLER || part[c] != largest[c] ? p : 0;
            }
            if (terms == TAME && far > magnitude(r.tame)) return false;
        }
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; ++c) of_chunk[c] += sum_of_lanes<1>(0, c);
        return true;
    }

    // Of every step-th lane of a column, in the order of fold_sum.
    template <ptrdiff_t step>
    [[gnu::always_inline]] double sum_of_lanes(ptrdiff_t first, ptrdiff_t c) const {
        if constexpr (step == lanes) return lane[first][c];
        else return sum_of_lanes<2 * step>(first, c) + sum_of_lanes<2 * step>(first + step, c);
    }

    template <Terms terms>
    void softmax(Half* y) {
        alignas(64) float scale[half_width];
        for (ptrdiff_t c = 0; c < count; ++c) scale[c] = half_scale<terms>(sum[c]);
        for (ptrdiff_t j = 0; j < n; ++j) {
            fetch<true>(y + (j + 1) * after, count);
            widen(x + j * after, part, count);
            const Rate<float> r = rate;
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c)
                part[c] = scaled<Half, terms == TAME>(power_of<Half, terms>(part[c], shift, c, r), scale[c], 0.0f);
            narrow(part, y + j * after, count);
        }
    }

    // Makes of the sums their logarithms, relative to the largest; columns where that outweighs the others are added up again without it.
    template <Terms terms>
    void logs() {
        float top[half_width];
        double low[half_width] = {}, equal[half_width] = {};
        int64_t any = 0;
        if constexpr (terms == TAME) shift.put_none(width);
#pragma omp simd reduction(| : any)
        for (ptrdiff_t c = 0; c < count; ++c) {
            top[c] = power_of<Half, ALL>(largest[c], shift, c, rate).value;
            equal[c] = outweighs<Half>(Power<float>{top[c], 0}, sum[c], n) ? 1 : 0;
            any |= equal[c] != 0;
        }
        if (any) add_others(equal);
#pragma omp simd
        for (ptrdiff_t c = 0; c < count; ++c) to_log<float>(sum[c], low[c], equal[c], Power<float>{top[c], 0});
    }

    // The sums without the largest of columns that are outweighed: of all, or, where they are few, of those picked.
    void add_others(const double* outweighed) {
        ptrdiff_t picks[half_width], some = 0;
        for (ptrdiff_t c = 0; c < count; ++c)
            if (outweighed[c] != 0) picks[some++] = c;
        if (4 * some > count) {
            double all[half_width];
            std::copy_n(sum, count, all);
            sums<SMALLER, false>();
            for (ptrdiff_t c = 0; c < count; ++c) sum[c] = outweighed[c] != 0 ? sum[c] : all[c];
            return;
        }
        for (; some % lanes; ++some) picks[some] = picks[0];
        HalfColumns others(x, n, after, some, 1);
        others.rate = rate, others.picks = picks;
        for (ptrdiff_t i = 0; i < some; ++i) others.largest[i] = largest[picks[i]], others.shift.put(i, shift[picks[i]]);
        others.template sums<SMALLER, false>();
        for (ptrdiff_t i = 0; i < some; ++i) sum[picks[i]] = others.sum[i];
    }

    void log_softmax(Half* y, Inverse<float> inverse) {
        for (ptrdiff_t j = 0; j < n; ++j) {
            fetch<true>(y + (j + 1) * after, count);
            widen(x + j * after, part, count);
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c)
                part[c] = log_probability<float>(part[c], largest[c], inverse, static_cast<float>(sum[c]));
            narrow(part, y + j * after, count);
        }
    }
};

// What becomes of a tile; false, and y as it was, where it should be TAME and is not.
template <Function function, Terms terms, class Half>
bool put_half_columns(HalfColumns<Half>& tile, Half* y, double temperature) {
    if (!tile.template sums<terms, terms == TAME && function != SOFTMAX>()) return false;
    if constexpr (function == SOFTMAX) return tile.template softmax<terms>(y), true;
    tile.template logs<terms>();
    if constexpr (function == LOG_SOFTMAX) tile.log_softmax(y, Inverse<float>(temperature));
    else
        for (ptrdiff_t c = 0; c < tile.count; ++c) y[c] = Half(shifted(tile.largest[c], {tile.sum[c], 0}));
    return true;
}

// The function of some columns; false where that does not go, and y is as it was.
template <Function function, class Half>
bool some_half_columns(const Half* x, Half* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature) {
    bool is_short = n <= short_half_row<function>;
    bool are_rows = count < (is_short ? 8 : lanes);
    if (n > few_in_row<Half> && are_rows) return false;
    if (is_short) return short_half_columns<function>(x, y, n, after, count, temperature);
    HalfColumns<Half> tile(x, n, after, count, temperature);
    return put_half_columns<function, TAME>(tile, y, temperature) ||
           (tile.shifts() && put_half_columns<function, ALL>(tile, y, temperature));
}

}  // namespace
