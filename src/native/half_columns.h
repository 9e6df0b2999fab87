// Columns of 16-bit floats, side by side: short ones as a tile of float32, the others each in the order of a row.
#pragma once
#include "columns.h"
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
    auto of_tile = tame_columns<function, float, true>;
    if constexpr (function == SOFTMAX) of_tile = tame_columns<SOFTMAX, float, true, float, Half>;
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
    alignas(64) float part[half_width], lane[lanes][half_width], largest[half_width];
    alignas(64) double of_chunk[half_width], sum[half_width];

    HalfColumns(const Half* x, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature)
        : x(x), n(n), after(after), count(count), width(whole_vectors(count)), rate(temperature) {
        std::fill_n(part, width, 0.0f);
        std::fill_n(sum, width, 0.0);
        std::fill_n(largest, count, -std::numeric_limits<float>::infinity());
    }

    // The sums of the powers; false where a column is not tame.
    template <bool with_largest>
    bool sums() {
        Magnitude<float> far = 0;
        for (ptrdiff_t from = 0; from < n; from += chunk) {
            ptrdiff_t end = std::min(from + chunk, n);
            std::fill_n(of_chunk, width, 0.0);
            for (ptrdiff_t j = from; j < end; j += block) far = std::max(far, add_block<with_largest>(j, std::min(j + block, end)));
            for (ptrdiff_t c = 0; c < width; ++c) sum[c] += of_chunk[c];
        }
        return far <= magnitude(rate.tame) && farthest(sum, count) < magnitude(Format<float>::tame_sum);
    }

    // As HalfPowers has them.
    template <bool with_largest>
    Magnitude<float> add_block(ptrdiff_t from, ptrdiff_t end) {
        Magnitude<float> far = 0;
        for (float* l : lane) std::fill_n(l, width, 0.0f);
        for (ptrdiff_t j = from; j < end; ++j) {
            float* to = lane[(j - from) % lanes];
            fetch<false>(x + (j + 1) * after, count);
            widen(x + j * after, part, count);
            if (with_largest) keep_larger(largest, part, count);
            const Rate<float> r = rate;
#pragma omp simd reduction(max : far)
            for (ptrdiff_t c = 0; c < width; ++c) {
                far = magnitude(part[c]) > far ? magnitude(part[c]) : far;
                to[c] += power<Half>(part[c], r).value;
            }
        }
#pragma omp simd
        for (ptrdiff_t c = 0; c < width; ++c) of_chunk[c] += sum_of_lanes<1>(0, c);
        return far;
    }

    // Of every step-th lane of a column, in the order of fold_sum.
    template <ptrdiff_t step>
    [[gnu::always_inline]] double sum_of_lanes(ptrdiff_t first, ptrdiff_t c) const {
        if constexpr (step == lanes) return lane[first][c];
        else return sum_of_lanes<2 * step>(first, c) + sum_of_lanes<2 * step>(first + step, c);
    }

    void softmax(Half* y) {
        alignas(64) float scale[half_width];
        for (ptrdiff_t c = 0; c < count; ++c) scale[c] = static_cast<float>(1 / sum[c]);
        for (ptrdiff_t j = 0; j < n; ++j) {
            fetch<true>(y + (j + 1) * after, count);
            widen(x + j * after, part, count);
            const Rate<float> r = rate;
#pragma omp simd
            for (ptrdiff_t c = 0; c < count; ++c) part[c] = power<Half>(part[c], r).value * scale[c];
            narrow(part, y + j * after, count);
        }
    }

    // Makes of the sums their logarithms, relative to the largest; columns where one term outweighs the others go through scratch.
    void logs(float* scratch) {
        float top[half_width];
        double low[half_width] = {};
        bool is_outweighed[half_width];
        for (ptrdiff_t c = 0; c < count; ++c) {
            top[c] = power<Half>(largest[c], rate).value;
            is_outweighed[c] = outweighs<Half>(Power<float>{top[c], 0}, sum[c]);
        }
#pragma omp simd
        for (ptrdiff_t c = 0; c < count; ++c) to_log<float, true>(sum[c], low[c], 0, Power<float>{top[c], 0});
        for (ptrdiff_t c = 0; c < count; ++c) {
            if (!is_outweighed[c]) continue;
            for (ptrdiff_t j = 0; j < n; ++j) scratch[j] = x[j * after + c];
            sum[c] = rounded(log_of_rest(scratch, n, largest[c], rate, 1));
        }
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

// The function of some columns; false where that does not go, and y is as it was. The scratch has room for one.
template <Function function, class Half>
bool tame_half_columns(const Half* x, Half* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, double temperature, float* scratch) {
    if (n <= short_half_row<function>) return short_half_columns<function>(x, y, n, after, count, temperature);
    if (count < 8) return false;
    HalfColumns<Half> tile(x, n, after, count, temperature);
    if (!tile.template sums<function != SOFTMAX>()) return false;
    if constexpr (function == SOFTMAX) {
        tile.softmax(y);
        return true;
    }
    tile.logs(scratch);
    if constexpr (function == LOG_SOFTMAX) tile.log_softmax(y, Inverse<float>(temperature));
    else
        for (ptrdiff_t c = 0; c < count; ++c) y[c] = Half(shifted(tile.largest[c], {tile.sum[c], 0}));
    return true;
}

}  // namespace
