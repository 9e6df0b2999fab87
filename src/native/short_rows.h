// Rows too short to fill vectors by themselves: `width` rows at once, one to a lane, all in double.
//
// Every lane does the same operations in the same order, so that the bits of a row don't depend on its neighbours.
#pragma once
#include "exp2.h"
#include "kernels.h"

namespace {

constexpr ptrdiff_t short_row = 31;  // longer rows go one by one

template <class T, int width>
struct Tile {
    using Each = double[width];  // one number a row
    ptrdiff_t n;
    Each x[short_row], e[short_row], tail[short_row];  // [j][l] is element j of row l
    Each max, c, limit, high, low, half, inverse_high, inverse_low;
    Each sum, sum_low, count;
    uint64_t bias[width];

    void load(const T* rows) {
        for (int l = 0; l < width; ++l)
            for (ptrdiff_t j = 0; j < n; ++j) x[j][l] = rows[l * n + j];
        for (int l = 0; l < width; ++l) max[l] = -std::numeric_limits<double>::infinity();
        for (ptrdiff_t j = 0; j < n; ++j)
#pragma omp simd
            for (int l = 0; l < width; ++l) max[l] = x[j][l] > max[l] ? x[j][l] : max[l];
    }

    void store(T* rows) const {
        for (int l = 0; l < width; ++l)
            for (ptrdiff_t j = 0; j < n; ++j) rows[l * n + j] = static_cast<T>(e[j][l]);
    }

    void set(int l, const Rate<double>& rate, const Inverse<double>& inverse) {
        Shift<double> s(std::isfinite(max[l]) ? max[l] : 0, rate);
        c[l] = s.c, limit[l] = s.limit, bias[l] = s.bias, high[l] = rate.high, low[l] = rate.low;
        half[l] = inverse.half, inverse_high[l] = inverse.high, inverse_low[l] = inverse.low;
    }

    // The powers and their sum; with `others`, the terms equal to the largest are counted instead of added.
    template <bool others>
    void powers() {
        for (int l = 0; l < width; ++l) sum[l] = sum_low[l] = count[l] = 0;
        for (ptrdiff_t j = 0; j < n; ++j)
#pragma omp simd
            for (int l = 0; l < width; ++l) {
                Power<double> p = power<T>(x[j][l], c[l], limit[l], bias[l], high[l], low[l]);
                bool left_out = others && x[j][l] == max[l];
                e[j][l] = p.value, tail[j][l] = p.tail;
                count[l] += left_out ? 1 : 0;
                double value = left_out ? 0 : p.value, rest = left_out ? 0 : p.tail;
                if constexpr (sizeof(T) == 4) sum[l] += value;
                else accumulate(sum[l], sum_low[l], value, rest);
            }
    }

    void softmax(T* y) {
        powers<false>();
        Each by, by_low;
        for (int l = 0; l < width; ++l) {
            Pair p = reciprocal({sum[l], sum_low[l]});
            by[l] = p.high, by_low[l] = p.low;
        }
        for (ptrdiff_t j = 0; j < n; ++j)
#pragma omp simd
            for (int l = 0; l < width; ++l) e[j][l] = scaled<double>({e[j][l], tail[j][l]}, Scale<double>({by[l], by_low[l]}));
        store(y);
    }

    Logarithm<T> log_of_rest(int l) const {
        return log1p_of<T>({sum[l], sum_low[l]}, power<T>(max[l], c[l], limit[l], bias[l], high[l], low[l]), count[l]);
    }

    void log_softmax(T* y) {
        powers<true>();
        Each log;
        for (int l = 0; l < width; ++l) log[l] = static_cast<double>(log_of_rest(l));
        for (ptrdiff_t j = 0; j < n; ++j)
#pragma omp simd
            for (int l = 0; l < width; ++l) {
                Inverse<double> inverse{half[l], inverse_high[l], inverse_low[l]};
                e[j][l] = log_probability(x[j][l], max[l], inverse, log[l]);
            }
        store(y);
    }

    void logsumexp(T* y) {
        powers<true>();
        for (int l = 0; l < width; ++l) y[l] = static_cast<T>(max[l] + log_of_rest(l));
    }
};

}  // namespace
