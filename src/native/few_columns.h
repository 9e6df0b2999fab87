// A few columns, too long for a cache or less than a vector: chunks of them are gathered, for the sums and once more for the results.
#pragma once
#include "gathered.h"
#include "long_rows.h"

namespace {

// By chunks go as many beyond so many bytes, and at most as many where they are less than a vector.
constexpr ptrdiff_t few_columns = 7, most_columns = 15, near_columns = 1 << 20;

// Whether `count` of `after` columns are better laid out as rows: fewer than `width`, if they stay near; of two to four only all, and not
// for their sums alone.
template <Function function, class T>
bool are_better_rows(ptrdiff_t n, ptrdiff_t count, ptrdiff_t after, ptrdiff_t width) {
    bool are_lanes = count >= (sizeof(T) == 2 ? 5 : of_lane<T>), are_all = count == after && function != LOGSUMEXP;
    return (are_lanes || are_all) && count < width && n * count * static_cast<ptrdiff_t>(sizeof(T)) <= (are_lanes ? near_columns : 1 << 18);
}

inline void tame_chunk(const float* x, float* y, ptrdiff_t n, Rate<float> rate, Scale<float> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled<float, true>(Power<float>{power<float>(x[i], rate).value, 0}, scale);
}

inline void tame_chunk(const double* x, double* y, ptrdiff_t n, Rate<double> rate, Scale<double> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled<double, true>(power<double>(x[i], rate), scale);
}

template <class T>
struct FewColumns {
    Strided<T> x;
    ptrdiff_t n, count;  // count <= most_columns columns of n elements
    Rate<T> rate;
    int threads;
    Sum<T> sum[most_columns];
    Pair log[most_columns];

    FewColumns(Strided<T> x, ptrdiff_t n, ptrdiff_t count, double temperature, int threads)
        : x(x), n(n), count(count), rate(temperature), threads(threads) {}

    struct Sums {
        Sum<T> of[most_columns];
    };

    // The sums of the powers; false where a column is not tame.
    template <bool with_largest>
    bool sum_up() {
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                T part[chunk], *none = nullptr;
                Sums sums;
                for (ptrdiff_t c = 0; c < count; ++c) {
                    x.gather(c, from, part, length);
                    sums.of[c] = tame_sum<with_largest, T>(part, none, none, length, rate, 1);
                }
                return sums;
            },
            [&](const Sums& part) {
                for (ptrdiff_t c = 0; c < count; ++c) sum[c].add(part.of[c]);
            });
        return std::all_of(sum, sum + count, [](const Sum<T>& s) { return s.tame && s.sum.high < Format<T>::tame_sum; });
    }

    // The logarithms, relative to the largest; false where that of a column takes more than its sum.
    bool logs() {
        for (ptrdiff_t c = 0; c < count; ++c) {
            Power<T> top = power<T>(sum[c].largest, rate);
            if (outweighs<T>(top, sum[c].sum.high, n)) return false;
            log[c] = log_of<T>(sum[c].sum, 0, top);
        }
        return true;
    }

    // Of some elements of a column, y is what becomes of them in place.
    template <class InPlace>
    void put(T* y, InPlace in_place) const {
        each_chunk(n, threads, [=, *this](ptrdiff_t from, ptrdiff_t length) {
            T part[most_columns * block];
            for (ptrdiff_t at = from, some; at < from + length; at += some) {
                some = std::min(block, from + length - at);
                gather(x.at(at), x.stride, part, some, count);
                for (ptrdiff_t c = 0; c < count; ++c) in_place(part + c * some, some, c);
                scatter(part, y + at * x.stride, x.stride, some, count);
            }
        });
    }
};

// The function of a few columns, y being laid out as x; false, and nothing written, where that does not go.
template <Function function, class T>
bool tame_few_columns(Strided<T> x, T* y, ptrdiff_t n, ptrdiff_t count, double temperature, int threads) {
    FewColumns<T> few(x, n, count, temperature, threads);
    if (!few.template sum_up<function != SOFTMAX>()) return false;
    if (function != SOFTMAX && !few.logs()) return false;
    if constexpr (function == SOFTMAX) {
        few.put(y, [&](T* part, ptrdiff_t length, ptrdiff_t c) {
            tame_chunk(part, part, length, few.rate, scale_of<T, true, T>(few.sum[c].sum));
        });
    } else if constexpr (function == LOG_SOFTMAX) {
        Inverse<T> inverse(temperature);
        few.put(y, [&](T* part, ptrdiff_t length, ptrdiff_t c) {
            log_softmax_chunk(part, part, length, few.sum[c].largest, inverse, static_cast<T>(rounded(few.log[c])));
        });
    } else {
        for (ptrdiff_t c = 0; c < count; ++c) y[c] = shifted(few.sum[c].largest, few.log[c]);
    }
    return true;
}

}  // namespace
