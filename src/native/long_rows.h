// Results of one row at a time, of any length, from its sums; threads may share them.
#pragma once
#include "kernels.h"
#include "log.h"
#include "sums.h"

namespace {

// The powers of a row are stored where its result will be. (A function of its own for each chunk, not a lambda: what that
// captures might change with every store, and the loop would not vectorise.)
template <bool tame>
void scale_chunk(const float* e, const float*, float* y, ptrdiff_t n, Scale<float> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled<float, tame>(Power<float>{e[i], 0}, scale);
}

// Of float64 their tails are needed as well: without, it would be another unit in the last place.
template <bool tame>
void scale_chunk(const double* e, const double* tails, double* y, ptrdiff_t n, Scale<double> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled<double, tame>(Power<double>{e[i], tails[i]}, scale);
}

template <bool tame, class T>
void scale_row(const T* e, const T* tails, T* y, ptrdiff_t n, Pair sum, int threads) {
    Scale<T> scale = scale_of<T, tame, T>(sum);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        scale_chunk<tame>(e + from, tails ? tails + from : tails, y + from, length, scale);
    });
}

template <class T>
void softmax_chunk(const T* x, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Scale<T> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled<T, false>(power<T>(x[i], shift, rate), scale);
}

// y = exp(x / T) / sum, the powers computed anew.
template <class T>
void softmax_of(const T* x, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Pair sum, int threads) {
    Scale<T> scale = scale_of<T, false, T>(sum);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        softmax_chunk(x + from, y + from, length, shift, rate, scale);
    });
}

template <class T>
constexpr bool has_tails = sizeof(T) == 8;

// Where the powers of a row are kept: y, or nowhere if their tails have no place, and then they are computed twice.
template <class T>
T* place_of_powers(T* y, const T* tails) {
    return tails || !has_tails<T> ? y : nullptr;
}

// Of any row with maximum m.
template <class T>
void softmax_row(const T* x, T* y, T* tails, ptrdiff_t n, T m, Rate<T> rate, int threads) {
    Shift<T> shift(m, rate);
    T* e = place_of_powers(y, tails);
    Pair sum = sum_of_row<ALL, false, T>(x, e, tails, n, m, shift, rate, threads).sum;
    if (e) scale_row<false>(e, tails, y, n, sum, threads);
    else softmax_of(x, y, n, shift, rate, sum, threads);
}

// Tame rows, some at a time: first the sums of all, then the results, since a sum takes a while to become a scale.
template <class T>
class TameRows {
    static constexpr ptrdiff_t size = 2048;  // elements
    alignas(64) T in_place[size], tails_of_chunk[has_tails<T> ? chunk : 1];
    T* tails;
    Pair sum[size / 64];

public:
    bool tame[size / 64];

    // Of rows longer than a chunk the tails go to scratch, if there is some.
    TameRows(ptrdiff_t n, T* scratch) : tails(!has_tails<T> ? nullptr : n <= chunk ? tails_of_chunk : scratch) {}
    static ptrdiff_t at_a_time(ptrdiff_t n) { return std::max<ptrdiff_t>(1, size / n); }
    T* tails_of(ptrdiff_t row, ptrdiff_t n) { return tails ? tails + row * n : nullptr; }

    // Where powers are kept, if they are.
    T* powers(const T* x, T* y, ptrdiff_t n) {
        if (x == y && n <= size) return in_place;
        return place_of_powers(y, tails);
    }

    void sum_up(const T* x, T* e, ptrdiff_t rows, ptrdiff_t n, Rate<T> rate, int threads) {
        for (ptrdiff_t r = 0; r < rows; ++r) {
            ptrdiff_t at = r * n;
            tame[r] = e != x;  // which is needed still, should the row not be tame
            if (!tame[r]) continue;
            Sum<T> row = tame_sum<false, T>(x + at, e ? e + at : e, e ? tails_of(r, n) : nullptr, n, rate, threads);
            sum[r] = row.sum, tame[r] = row.tame;
        }
    }

    void result(ptrdiff_t r, const T* x, const T* e, T* y, ptrdiff_t n, Rate<T> rate, int threads) {
        if (e) scale_row<true>(e + r * n, tails_of(r, n), y, n, sum[r], threads);
        else softmax_of(x, y, n, Shift<T>::none(), rate, sum[r], threads);
    }
};

template <class T>
ptrdiff_t count_equal(const T* x, ptrdiff_t n, T m) {
    ptrdiff_t equal = 0;
#pragma omp simd reduction(+ : equal)
    for (ptrdiff_t i = 0; i < n; ++i) equal += x[i] == m;
    return equal;
}

// Adds a row, or a part of it, to its partition.
template <class T>
void add_to(Partition& p, const T* x, ptrdiff_t n, Shift<T> shift, Rate<T> rate, int threads) {
    T m = static_cast<T>(p.max), *none = nullptr;
    Pair others = sum_of_powers<SMALLER, T>(x, none, n, m, shift, rate, threads);
    accumulate(p.others, p.low, others.high, others.low);
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) { return count_equal(x + from, length, m); },
        [&](ptrdiff_t equal) { p.equal += static_cast<double>(equal); });
}

// log(sum(exp((x - m) / T))) of a row, from the sum of all terms, or, where the largest outweighs the others, of these.
template <class T>
Pair log_of_row(Pair sum, const T* x, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate, int threads) {
    Power<T> top = power<T>(m, shift, rate);
    if (!outweighs<T>(top, sum.high, n)) return log_of<T>(sum, 0, top);
    T* none = nullptr;
    return log_of<T>(sum_of_powers<SMALLER, T>(x, none, n, m, shift, rate, threads), 1, top);
}
template <class T>
Pair log_of_row(const T* x, ptrdiff_t n, T m, Rate<T> rate, int threads) {
    Shift<T> shift(m, rate);
    T* none = nullptr;
    return log_of_row(sum_of_powers<ALL, T>(x, none, n, m, shift, rate, threads), x, n, m, shift, rate, threads);
}

// max(x) of a tame row, and this.
template <class T>
struct TameLog {
    T max;
    Pair log;
    bool tame;

    TameLog(const T* x, ptrdiff_t n, Rate<T> rate, int threads) {
        T* none = nullptr;
        Sum<T> row = tame_sum<true, T>(x, none, none, n, rate, threads);
        max = row.largest;
        tame = row.tame;
        if (tame) log = log_of_row(row.sum, x, n, max, Shift<T>::none(), rate, threads);
    }
};

template <class T>
void log_softmax_chunk(const T* x, T* y, ptrdiff_t n, T m, Inverse<T> inverse, T log) {
    constexpr ptrdiff_t strip = 64;
    for (ptrdiff_t from = 0, end; from < n; from = end) {
        end = std::min(n, from + strip);
        fetch<true>(y + from + block, strip);
#pragma omp simd
        for (ptrdiff_t i = from; i < end; ++i) y[i] = log_probability<T>(x[i], m, inverse, log);
    }
}

template <class T>
void log_softmax_of(const T* x, T* y, ptrdiff_t n, T m, Inverse<T> inverse, Pair log_of_rest, int threads) {
    T log = static_cast<T>(rounded(log_of_rest));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        log_softmax_chunk(x + from, y + from, length, m, inverse, log);
    });
}

template <class T>
void softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate, int threads) {
    T m = static_cast<T>(p.max);
    Shift<T> shift(m, rate);
    Power<T> largest = power<T>(m, shift, rate);
    Pair sum{p.others, p.low};
    double e = largest.value, product = p.equal * e;
    accumulate(sum.high, sum.low, product, fma(p.equal, e, -product) + p.equal * largest.tail);
    softmax_of(x, y, n, shift, rate, sum, threads);
}

template <class T>
void log_softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate, Inverse<T> inverse, int threads) {
    T m = static_cast<T>(p.max);
    Power<T> largest = power<T>(m, Shift<T>(m, rate), rate);
    log_softmax_of(x, y, n, m, inverse, log_of<T>({p.others, p.low}, p.equal, largest), threads);
}

}  // namespace
