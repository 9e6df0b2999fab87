// log_softmax_vjp along columns, side by side: each sum in the order of a contiguous row of more than a few elements.
#pragma once
#include "log_products.h"
#include "product_columns.h"

namespace {

// Those of 16 bits are computed as float32.
template <class T>
struct LogProductColumns {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    static constexpr ptrdiff_t width = 1024 / sizeof(Work), strip = vector_size / sizeof(Work);
    static ptrdiff_t at_a_time(ptrdiff_t) { return width; }

    const T *p, *v;
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    alignas(64) Work sum[width], sum_low[width], of_peak[width];

    LogProductColumns(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    // What the elements of some columns add up to but for their peaks, and these; see Others.
    struct Sums {
        double v_high[strip], v_low[strip], p_high[strip], p_low[strip];
        [[gnu::always_inline]] void clear() {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) v_high[i] = v_low[i] = p_high[i] = p_low[i] = 0;
        }
        template <class Result>
        [[gnu::always_inline]] void add(const Sums& more) {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) add_term<Result>(v_high[i], v_low[i], more.v_high[i], more.v_low[i]);
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) add_term<Result>(p_high[i], p_low[i], more.p_high[i], more.p_low[i]);
        }
    };
    struct Found {  // the peaks
        Work p[strip] = {}, v[strip] = {};
        Peaks<Work> count[strip] = {};
    };
    static constexpr Peaks<Work> one_each = 1 - one_peak;  // to count them

    // The sums of a chunk of a strip: those of four lanes at a time in registers, in the order in which they are added up.
    template <class Some>
    [[gnu::always_inline]] static inline void add_chunk(const T* p, const T* v, ptrdiff_t after, ptrdiff_t length, Some some, Sums& all, Found& found) {
        ptrdiff_t whole = length / lanes * lanes;
        Sums of[2];
        auto add = [&](ptrdiff_t j, Sums& to) __attribute__((always_inline)) {
            Work p_own[strip], v_own[strip];
            const Work *p_j = p_own, *v_j = v_own;
            fetch<false>(p + j * after + strip, strip);
            fetch<false>(v + j * after + strip, strip);
            if constexpr (sizeof(T) == 2) widen(p + j * after, p_own, some), widen(v + j * after, v_own, some);
            else p_j = p + j * after, v_j = v + j * after;
#pragma omp simd
            for (ptrdiff_t i = 0; i < ptrdiff_t(some); ++i) {
                Work p_i = p_j[i], v_i = v_j[i];
                add_other(to.v_high[i], to.v_low[i], to.p_high[i], to.p_low[i], found.count[i], p_i, v_i, one_each);
                found.v[i] = p_i > peak<Work> ? v_i : found.v[i], found.p[i] = p_i > peak<Work> ? p_i : found.p[i];
            }
        };
        auto set = [&](Sums& to, ptrdiff_t l) __attribute__((always_inline)) {
            to.clear();
            for (ptrdiff_t j = l; j < whole; j += lanes) add(j, to);
            if (ptrdiff_t last = l + length - lanes; last >= whole) add(last, to);
        };
        for (ptrdiff_t group = 0; group < 4; ++group) {
            ptrdiff_t l = group % 2 * 2 + group / 2;
            Sums a, b, c;
            set(a, l), set(b, l + 8);
            a.template add<Work>(b);
            set(b, l + 4), set(c, l + 12);
            b.template add<Work>(c);
            a.template add<Work>(b);
            if (group % 2 == 0) of[group / 2] = a;
            else of[group / 2].template add<Work>(a);
        }
        all = of[0];
        all.template add<Work>(of[1]);
    }

    // False where a column has more than one peak.
    template <class Some>
    bool add_strip(ptrdiff_t c, Some some) {
        Sums all, part;
        Found found;
        all.clear();
        for (ptrdiff_t from = 0; from < n; from += chunk) {
            add_chunk(p + from * after + c, v + from * after + c, after, std::min(chunk, n - from), some, part, found);
            if (n <= chunk) all = part;  // not added to 0: an infinite sum would become NaN
            else all.template add<double>(part);
        }
        Peaks<Work> several = 0;
        Work *to = sum + c, *to_low = sum_low + c, *to_peak = of_peak + c;
#pragma omp simd reduction(| : several)
        for (ptrdiff_t i = 0; i < ptrdiff_t(some); ++i) {
            double high = all.v_high[i], low = all.v_low[i], others_v = high + low, others_p = all.p_high[i] + all.p_low[i];
            to_peak[i] = static_cast<Work>(at_peak(found.p[i], found.v[i], others_p, others_v));
            add_term<double>(high, low, static_cast<double>(found.v[i]), 0.0);
            to[i] = static_cast<Work>(high), to_low[i] = static_cast<Work>(low);
            several |= found.count[i] > 1 ? 1 : 0;
        }
        return !several;
    }

    bool means() {
        bool good = true;
        auto add = [&](auto some) {
            for (ptrdiff_t c = 0; c < count && good; c += some) good = add_strip(std::min<ptrdiff_t>(c, count - some), some);
        };
        if (count >= strip) add(std::integral_constant<ptrdiff_t, strip>());
        else add(count);
        return good;
    }

    void products(T* y) {
        Work p_own[width], v_own[width], y_own[width];
        const Work *of_v = sum, *rest = sum_low, *peaks = of_peak;
        for (ptrdiff_t j = 0; j < n; ++j) {
            const Work *p_j = row_of(p, j, after, count, p_own), *v_j = row_of(v, j, after, count, v_own);
            T* to = y + j * after;
            fetch<true>(to + after, count);
            fetch<false>(p + j * after + count, count);
            fetch<false>(v + j * after + count, count);
            Work* y_j = y_own;
            if constexpr (sizeof(T) > 2) y_j = to;
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i) {
                Work plain = less_share(p_j[i], v_j[i], of_v[i], rest[i]);
                y_j[i] = p_j[i] > peak<Work> ? peaks[i] : plain;
            }
            if constexpr (sizeof(T) == 2) narrow(y_j, to, count);
        }
    }
};

}  // namespace
