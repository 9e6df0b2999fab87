// Rows too short to fill vectors by themselves, in double: the powers of a block of rows in one loop, then row by row.
//
// In a block that is not tame, and with a temperature for each row, every row has its own loop; the bits are the same.
#pragma once
#include "long_rows.h"

namespace {

constexpr ptrdiff_t short_row = 63;  // longer rows go one by one

// The largest element, NaN passed over.
template <class T>
T short_maximum(const T* x, ptrdiff_t n) {
    T m = -std::numeric_limits<T>::infinity();
    for (ptrdiff_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
    return m;
}

template <class T>
void short_log_softmax(const T* x, T* y, ptrdiff_t n, double m, Inverse<double> inverse, double log) {
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = static_cast<T>(log_probability<double>(x[j], m, inverse, log));
}

template <class T>
struct ShortRows {
    static constexpr bool wider = sizeof(T) < sizeof(double);  // than the result: no tails are needed
    double e[block], tail[block];

    // The powers of rows without a shift, size elements in all; false where they are not tame.
    bool tame_powers(const T* x, ptrdiff_t size, Rate<double> rate) {
        double low = 0, high = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
        for (ptrdiff_t i = 0; i < size; ++i) {
            double v = x[i];
            low = v < low ? v : low;
            high = v > high ? v : high;
            store(i, power<T>(v, rate));
        }
        return low >= -rate.tame && high <= rate.tame;
    }

    // The powers of one row.
    void powers(const T* x, ptrdiff_t n, Shift<double> shift, Rate<double> rate) {
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) store(j, power<T>(static_cast<double>(x[j]), shift, rate));
    }

    void softmax(ptrdiff_t at, T* y, ptrdiff_t n) const {
        const double *er = e + at, *tr = tail + at;
        Scale<double> by(reciprocal(sum(at, n)));
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) {
            if constexpr (wider) y[j] = static_cast<T>(er[j] * by.high);
            else y[j] = scaled<double>({er[j], tr[j]}, by);
        }
    }

    // log(sum(exp((x - m) / T))), m the largest element, whose power is `largest`.
    Logarithm<T> log_of_rest(ptrdiff_t at, const T* x, ptrdiff_t n, T m, Power<double> largest) const {
        using Wide = Logarithm<T>;
        Pair all = sum(at, n);
        Wide ratio = (Wide(all.high) + all.low) / (Wide(largest.value) + largest.tail);
        if (!(ratio < 2)) return std::log(ratio);
        Pair others{0, 0};  // one term outweighs them: they hold more than their sum with it
        double equal = 0;
        for (ptrdiff_t j = 0; j < n; ++j) {
            equal += x[j] == m;
            if (x[j] != m) add(others, at + j);
        }
        return log1p_of<T>(others, largest, equal);
    }

private:
    void store(ptrdiff_t i, Power<double> p) {
        e[i] = p.value;
        if constexpr (!wider) tail[i] = p.tail;
    }
    void add(Pair& sum, ptrdiff_t i) const {
        if constexpr (wider) sum.high += e[i];
        else accumulate(sum.high, sum.low, e[i], tail[i]);
    }
    // One after the other: rows are independent, and the processor takes several at a time.
    Pair sum(ptrdiff_t at, ptrdiff_t n) const {
        Pair total{0, 0};
        for (ptrdiff_t j = 0; j < n; ++j) add(total, at + j);
        return total;
    }
};

}  // namespace
