// Rows too short to be worth loops of their own: the powers of a block of them in one loop, then row by row.
//
// The shortest are computed in double, each sum in four parts; the others in T, with the sums of long rows.
// In a block that is not tame, elements are reduced row by row, relative to its maximum; where one of these is not finite, and with a
// temperature for each row, every row has its own loop. The bits are the same.
#pragma once
#include "kernels.h"
#include "long_rows.h"

namespace {

// Up to these lengths rows are short, or middle; longer ones go one by one.
constexpr ptrdiff_t short_row = 63;
template <Function function>
constexpr bool are_logs = function == LOG_SOFTMAX || function == LOGSUMEXP;
template <Function function, class T>
constexpr ptrdiff_t short_row_of = sizeof(T) == 4 && are_logs<function> ? short_row : 31;
template <Function function, class T>
constexpr ptrdiff_t middle_row_of = sizeof(T) == 8 || are_logs<function> ? block : block / 2;

// The largest element, NaN passed over.
template <class T>
[[gnu::always_inline]] inline T short_maximum(const T* x, ptrdiff_t n) {
    constexpr ptrdiff_t width = 4;
    T m[width];
    for (ptrdiff_t l = 0; l < width; ++l) m[l] = -std::numeric_limits<T>::infinity();
    for (ptrdiff_t j = 0; j + width <= n; j += width) keep_larger(m, x + j, width);
    if (n >= width) keep_larger(m, x + n - width, width);  // some of them once more
    else keep_larger(m, x, n);
    fold_maximum<width / 2>(m);
    return m[0];
}

// The largest magnitude.
template <class T>
[[gnu::always_inline]] inline Magnitude<T> short_farthest(const T* x, ptrdiff_t n) {
    Magnitude<T> m[4] = {};
    ptrdiff_t j = 0;
    for (; j + 4 <= n; j += 4)
#pragma omp simd
        for (ptrdiff_t l = 0; l < 4; ++l) m[l] = std::max(m[l], magnitude(x[j + l]));
    for (; j < n; ++j) m[0] = std::max(m[0], magnitude(x[j]));
    return std::max(std::max(m[0], m[1]), std::max(m[2], m[3]));
}

template <class T, class Work>
[[gnu::always_inline]] inline void log_softmax_of_some(const T* x, T* y, ptrdiff_t n, Work m, Inverse<Work> inverse, Work log) {
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = static_cast<T>(log_probability<T, Work>(x[j], m, inverse, log));
}

// With AVX-512, of float32 whole vectors, the last one over some again: it is computed first, since y may be x.
template <class T, class Work>
void short_log_softmax(const T* x, T* y, ptrdiff_t n, Work m, Inverse<Work> inverse, Work log) {
    if (vector_size < 64 || sizeof(Work) == 8 || n < lanes) return log_softmax_of_some(x, y, n, m, inverse, log);
    T last[lanes];
    log_softmax_of_some(x + n - lanes, last, lanes, m, inverse, log);
    for (ptrdiff_t j = 0; j + lanes <= n; j += lanes) log_softmax_of_some(x + j, y + j, lanes, m, inverse, log);
    if (n % lanes) std::copy_n(last, lanes, y + n - lanes);
}

// A short sum, in four parts: they, and those of other rows, are computed at a time.
template <class T, class Add>
[[gnu::always_inline]] inline Pair in_turn(ptrdiff_t n, Add add) {
    Pair a{0, 0}, b{0, 0}, c{0, 0}, d{0, 0};
    ptrdiff_t j = 0;
    for (; j + 3 < n; j += 4) add(a, j), add(b, j + 1), add(c, j + 2), add(d, j + 3);
    if (j < n) add(a, j);
    if (j + 1 < n) add(b, j + 1);
    if (j + 2 < n) add(c, j + 2);
    add_term<T>(a.high, a.low, c.high, c.low);
    add_term<T>(b.high, b.low, d.high, d.low);
    add_term<T>(a.high, a.low, b.high, b.low);
    return a;
}

template <class T, bool is_short, class Working = std::conditional_t<is_short, double, T>, class Result = T>
struct ShortRows {
    using Work = Working;
    static constexpr bool wider = sizeof(Result) < sizeof(Work);  // than the result: no tails are needed
    static constexpr ptrdiff_t width = vector_size / sizeof(T);  // so many at a time
    alignas(64) Work e[block + lanes], tail[block + lanes], rest[block + lanes];
    alignas(64) T max[block];  // of each row, and its logarithm
    alignas(64) double high[block], low[block], equal[block];
    alignas(64) Work top[block], top_tail[block];  // the power of the largest
    Shifts<Work, block> shift;
    bool is_tame[block];

    static T maximum(const T* x, ptrdiff_t n) { return is_short ? short_maximum(x, n) : ::maximum(x, n); }

    // The powers of rows without a shift, size elements in all; false where they are not tame. What follows is asked for, also
    // of the y to be written. The last vector goes over some again.
    bool tame_powers(const T* x, ptrdiff_t size, Rate<Work> rate, const T* y = nullptr) {
        Magnitude<Work> farthest[width] = {};
        auto reduce = [&](ptrdiff_t i, ptrdiff_t n) __attribute__((always_inline)) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < n; ++l) {
                Work v = x[i + l];
                Magnitude<Work> far = magnitude(v);
                farthest[l] = far > farthest[l] ? far : farthest[l];
                store(i + l, reduced<Result>(v, rate));
            }
        };
        ptrdiff_t last = size - width, i = 0;
        for (; i <= last; i += width) reduce(i, width);
        if (i < size && last >= 0) reduce(last, width);
        else if (i < size) reduce(0, size);
        fold_maximum<width / 2>(farthest);
        if (farthest[0] > magnitude(rate.tame)) return false;
        powers(x, size, y);
        return true;
    }

    // The same of any rows, relative to their maxima, which are kept as those of rows from `first` on; false where one is not finite.
    // What a vector has of the next row is overwritten by that. If asked for, tame rows are told, and have no shift.
    template <bool tells_tame = false>
    bool wild_powers(const T* x, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t n, Rate<Work> rate, const T* y = nullptr) {
        for (ptrdiff_t r = 0; r < rows; ++r) max[first + r] = maximum(x + r * n, n);
        if (!shift.follow(max + first, rows, rate)) return false;
        for (ptrdiff_t r = 0; r < rows && tells_tame; ++r) {
            Magnitude<T> far = is_short ? short_farthest(x + r * n, n) : farthest(x + r * n, n);
            is_tame[r] = far <= magnitude(static_cast<T>(rate.tame));
            if (is_tame[r]) shift.put(r, Shift<Work>::none());
        }
        const ptrdiff_t size = rows * n;
        auto reduce = [&](ptrdiff_t i, ptrdiff_t n, Shift<Work> s) __attribute__((always_inline)) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < n; ++l) store(i + l, reduced<Result>(static_cast<Work>(x[i + l]), s, rate));
        };
        for (ptrdiff_t r = 0; r < rows; ++r) {
            Shift<Work> s = shift[r];
            for (ptrdiff_t i = r * n, end = i + n; i < end; i += width)
                if (i + width <= size) reduce(i, width, s);
                else reduce(i, end - i, s);
        }
        powers(x, size, y);
        return true;
    }

    // Of what is reduced, and of as much beyond as makes a vector: zeros, for what happens to be there may be subnormal, which is slow.
    void powers(const T* x, ptrdiff_t size, const T* y) {
        constexpr ptrdiff_t strip = 64;
        for (Work* array : {e, rest, tail}) std::fill_n(array + size, width, Work(0));
        for (ptrdiff_t i = 0; i < size;) {
            fetch<false>(x + size + i, strip);
            if (y) fetch<true>(y + size + i, strip);
            ptrdiff_t end = std::min(size, i + strip);
            for (; i < end; i += width) power_some(e + i, rest + i, tail + i, i, width);
        }
    }

    [[gnu::always_inline]] void power_some(const Work* r, const Work* its_rest, const Work* scale, ptrdiff_t at, ptrdiff_t n) {
        Work *to = e + at, *to_tail = tail + at;
#pragma omp simd
        for (ptrdiff_t l = 0; l < n; ++l) {
            Work value, its_tail;
            ::put(value, its_tail, power<Result>(Reduced<Work>{r[l], wider ? 0 : its_rest[l], scale[l]}));
            to[l] = value;
            if constexpr (!wider) to_tail[l] = its_tail;
        }
    }

    // The powers of one row.
    void powers(const T* x, ptrdiff_t n, Shift<Work> shift, Rate<Work> rate) {
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) store(j, power<Result>(static_cast<Work>(x[j]), shift, rate));
    }

    void softmax_of_row(const T* x, T* y, ptrdiff_t n, T m, Rate<Work> rate) {
        powers(x, n, Shift<Work>(m, rate), rate);
        softmax<false>(y, 1, n);
    }

    // Of rows whose powers are there: first some sums, since one takes a while to become a scale (short ones overlap anyway).
    template <bool tame>
    void softmax(T* y, ptrdiff_t rows, ptrdiff_t n) {
        if (is_short && n < lanes) {
            for (ptrdiff_t r = 0; r < rows; ++r) scale_some<tame>(r * n, y + r * n, n, scale_of<Result, tame, Work>(sum(r * n, n)));
            return;
        }
        for (ptrdiff_t r = 0; r < rows; ++r) put(r, sum(r * n, n));
        for (ptrdiff_t r = 0; r < rows; ++r) scale<tame>(r * n, y + r * n, n, scale_of<Result, tame, Work>(Pair{high[r], low[r]}));
    }

    // A row of 16 elements or more: of float32 whole vectors, the last one over some again.
    template <bool tame>
    void scale(ptrdiff_t at, T* y, ptrdiff_t n, Scale<Work> by) const {
        if (sizeof(T) == 8) return scale_some<tame>(at, y, n, by);
        for (ptrdiff_t j = 0; j + lanes <= n; j += lanes) scale_some<tame>(at + j, y + j, lanes, by);
        if (n % lanes) scale_some<tame>(at + n - lanes, y + n - lanes, lanes, by);
    }

    template <bool tame>
    [[gnu::always_inline]] void scale_some(ptrdiff_t at, T* y, ptrdiff_t n, Scale<Work> by) const {
        const Work *er = e + at, *tr = tail + at;
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; ++j) {
            constexpr bool has_tail = !wider && sizeof(T) == 8;  // without, as long rows have it
            y[j] = static_cast<T>(scaled<Result, tame>(Power<Work>{er[j], has_tail ? tr[j] : 0}, by));
        }
    }

    // Of rows from `first` on, the powers of the largest elements: of tame ones, which are to be found still, or of others.
    void tame_maxima(const T* x, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t n, Rate<Work> rate) {
        for (ptrdiff_t r = 0; r < rows; ++r) max[first + r] = maximum(x + r * n, n);
#pragma omp simd
        for (ptrdiff_t r = first; r < first + rows; ++r) ::put(top[r], top_tail[r], power<T>(static_cast<Work>(max[r]), rate));
    }
    void wild_maxima(ptrdiff_t first, ptrdiff_t rows, Rate<Work> rate) {
        T* m = max + first;
        Work *t = top + first, *its_tail = top_tail + first;
#pragma omp simd
        for (ptrdiff_t r = 0; r < rows; ++r)
            ::put(t[r], its_tail[r], power_of<T, ALL>(static_cast<Work>(m[r]), shift, r, rate));
    }

    // Of rows whose powers are there, kept as those from `first` on: the sum of all, or of those that the largest does not outweigh.
    void sums(const T* x, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t n) {
        for (ptrdiff_t r = 0; r < rows; ++r) put(first + r, sum(r * n, n));
        for (ptrdiff_t r = 0; r < rows; ++r)
            if (outweighs<T>(Power<Work>{top[first + r], 0}, high[first + r], n))
                put(first + r, others(r * n, x + r * n, n, max[first + r]), 1);
    }

    // Makes of the sums log(sum(exp((x - max) / T))), in high + low.
    void logs(ptrdiff_t rows) {
#pragma omp simd
        for (ptrdiff_t r = 0; r < rows; ++r) to_log<T>(high[r], low[r], equal[r], Power<Work>{top[r], top_tail[r]});
    }

    // The same of any short row, m its largest element.
    Pair log_of_row(const T* x, ptrdiff_t n, T m, Rate<Work> rate) {
        Shift<Work> shift(m, rate);
        powers(x, n, shift, rate);
        Power<Work> top = power<T>(static_cast<Work>(m), shift, rate);
        Pair all = sum(0, n);
        return outweighs<T>(top, all.high, n) ? log_of<T>(others(0, x, n, m), 1, top) : log_of<T>(all, 0, top);
    }

    // The sum of the powers of a row but for those of its largest elements.
    Pair others(ptrdiff_t at, const T* x, ptrdiff_t n, T m) const {
        if constexpr (!is_short) {
            Lanes<Work, Result> sums;
            sums.add_others(e + at, tail + at, x, n, m);
            return sums.total();
        }
        using Bits = typename Format<T>::Bits;
        return in_turn<T>(n, [&](Pair& sum, ptrdiff_t j) {
            uint64_t is_largest = std::bit_cast<Bits>(x[j]) == std::bit_cast<Bits>(m), mask = is_largest - 1;
            add_term<T, double>(sum.high, sum.low, masked(e[at + j], mask), wider ? 0 : masked(tail[at + j], mask));
        });
    }
    Pair sum(ptrdiff_t at, ptrdiff_t n) const {
        if constexpr (!is_short) {
            Lanes<Work, Result> sums;
            sums.add_padded(e + at, tail + at, n);
            return sums.total();
        }
        return in_turn<T>(n, [&](Pair& sum, ptrdiff_t j) {
            add_term<T, double>(sum.high, sum.low, e[at + j], wider ? 0 : tail[at + j]);
        });
    }

private:
    void put(ptrdiff_t r, Pair sum, double counted = 0) { high[r] = sum.high, low[r] = sum.low, equal[r] = counted; }
    [[gnu::always_inline]] void store(ptrdiff_t i, Reduced<Work> d) {
        e[i] = d.r, tail[i] = d.scale;
        if constexpr (!wider) rest[i] = d.rest;
    }
    void store(ptrdiff_t i, Power<Work> p) {
        e[i] = p.value;
        if constexpr (!wider) tail[i] = p.tail;
    }
    static double masked(double v, uint64_t mask) { return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & mask); }
};

}  // namespace
