// Rows too short to be worth loops of their own: the powers of a block of them in one loop, then row by row.
//
// The shortest are computed in double, each sum one term after the other; the others in T, with the sums of long rows.
// In a block that is not tame, and with a temperature for each row, every row has its own loop; the bits are the same.
#pragma once
#include "long_rows.h"

namespace {

// Longer rows go one by one; of float64 that computes their powers twice, and is put off.
constexpr ptrdiff_t short_row = 63;
template <class T>
constexpr ptrdiff_t middle_row = sizeof(T) == 8 ? block : block / 2;

// The largest element, NaN passed over.
template <class T>
T short_maximum(const T* x, ptrdiff_t n) {
    T m = -std::numeric_limits<T>::infinity();
    for (ptrdiff_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
    return m;
}

template <class T, class Work>
void short_log_softmax(const T* x, T* y, ptrdiff_t n, Work m, Inverse<Work> inverse, Work log) {
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = static_cast<T>(log_probability<Work>(x[j], m, inverse, log));
}

template <class T, bool is_short>
struct ShortRows {
    using Work = std::conditional_t<is_short, double, T>;
    static constexpr bool wider = sizeof(T) < sizeof(Work);  // than the result: no tails are needed
    Work e[block], tail[block];

    // The powers of rows without a shift, size elements in all; false where they are not tame.
    bool tame_powers(const T* x, ptrdiff_t size, Rate<Work> rate) {
        Magnitude<Work> farthest = 0;
#pragma omp simd reduction(max : farthest)
        for (ptrdiff_t i = 0; i < size; ++i) {
            Work v = x[i];
            Magnitude<Work> far = magnitude(v);
            farthest = far > farthest ? far : farthest;
            store(i, power<T>(v, rate));
        }
        return farthest <= magnitude(rate.tame);
    }

    // The powers of one row.
    void powers(const T* x, ptrdiff_t n, Shift<Work> shift, Rate<Work> rate) {
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) store(j, power<T>(static_cast<Work>(x[j]), shift, rate));
    }

    void softmax(ptrdiff_t at, T* y, ptrdiff_t n) const {
        const Work *er = e + at, *tr = tail + at;
        Scale<Work> by(reciprocal(sum(at, n)));
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) {
            if constexpr (wider) y[j] = static_cast<T>(er[j] * by.high);
            else if constexpr (sizeof(T) == 4) y[j] = scaled<Work>({er[j], 0}, by);  // as long rows have it
            else y[j] = scaled<Work>({er[j], tr[j]}, by);
        }
    }

    // log(sum(exp((x - m) / T))), m the largest element, whose power is `largest`.
    Logarithm<T> log_of_rest(ptrdiff_t at, const T* x, ptrdiff_t n, T m, Power<Work> largest) const {
        Logarithm<T> all = ratio<T>(sum(at, n), largest);
        if (!(all < 2)) return std::log(all);
        Pair others{0, 0};  // one term outweighs them: they hold more than their sum with it
        double equal = 0;
        for (ptrdiff_t j = 0; j < n; ++j) {
            equal += x[j] == m;
            if (x[j] != m) add(others, at + j);
        }
        return log1p_of<T>(others, largest, equal);
    }

private:
    void store(ptrdiff_t i, Power<Work> p) {
        e[i] = p.value;
        if constexpr (!wider) tail[i] = p.tail;
    }
    void add(Pair& sum, ptrdiff_t i) const { add_term<T, double>(sum.high, sum.low, e[i], wider ? 0 : tail[i]); }
    Pair sum(ptrdiff_t at, ptrdiff_t n) const {
        if constexpr (!is_short) {
            Lanes<Work> sums;
            sums.add(e + at, tail + at, n);
            return sums.total();
        }
        Pair total{0, 0};  // rows are independent: the processor takes several at a time
        for (ptrdiff_t j = 0; j < n; ++j) add(total, at + j);
        return total;
    }
};

}  // namespace
