// log_softmax_vjp along columns, side by side: each sum in the order of a contiguous row of more than a few elements.
#pragma once
#include "log_products.h"
#include "product_columns.h"

namespace {

// Those of 16 bits are computed as float32.
template <class T>
struct LogProductColumns {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    static constexpr ptrdiff_t width = 1024 / sizeof(Work), strip = 64 / sizeof(Work);  // a line of the cache
    static ptrdiff_t at_a_time(ptrdiff_t) { return width; }

    // What the elements of some columns add up to but for their peaks, and these; see Others.
    struct Sums {
        double v_high[strip], v_low[strip], p_high[strip], p_low[strip];
        [[gnu::always_inline]] void clear() {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) v_high[i] = v_low[i] = p_high[i] = p_low[i] = 0;
        }
        template <class Result>
        [[gnu::always_inline]] void add_as(const Sums& more) {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) add_term<Result>(v_high[i], v_low[i], more.v_high[i], more.v_low[i]);
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) add_term<Result>(p_high[i], p_low[i], more.p_high[i], more.p_low[i]);
        }
        [[gnu::always_inline]] void add(const Sums& more) { add_as<Work>(more); }
        [[gnu::always_inline]] void add_chunk(const Sums& more) { add_as<double>(more); }
    };
    struct Found {  // the peaks
        Work p[strip], v[strip];
        Peaks<Work> count[strip];
    };
    static constexpr Peaks<Work> one_each = 1 - one_peak;  // to count them

    const T *p, *v;
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    alignas(64) Work sum[width], sum_low[width], of_peak[width];
    Sums chunk_sums[width / strip][lanes], whole_sums[width / strip];
    Found found[width / strip];

    LogProductColumns(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    template <class Some>
    [[gnu::always_inline]] void add(const Part& part, ptrdiff_t c, ptrdiff_t s, Some some, Ahead<T>& ahead) {
        const T *p_0 = p + part.start * after + c, *v_0 = v + part.start * after + c;
        ptrdiff_t next = after;
        Found peaks{};
        if (part.start || part.from) peaks = found[s];
        add_part(part, chunk_sums[s], whole_sums[s], [&](ptrdiff_t j, Sums& to) __attribute__((always_inline)) {
            Work p_own[strip], v_own[strip];
            ahead.fetch(strip);
            const Work *p_j = widened(p_0 + j * next, some, p_own), *v_j = widened(v_0 + j * next, some, v_own);
#pragma omp simd
            for (ptrdiff_t i = 0; i < ptrdiff_t(some); ++i) {
                Work p_i = p_j[i], v_i = v_j[i];
                add_other(to.v_high[i], to.v_low[i], to.p_high[i], to.p_low[i], peaks.count[i], p_i, v_i, one_each);
                peaks.v[i] = p_i > peak<Work> ? v_i : peaks.v[i], peaks.p[i] = p_i > peak<Work> ? p_i : peaks.p[i];
            }
        });
        found[s] = peaks;
    }

    // False where a column has more than one peak.
    template <class Some>
    bool put_strip(ptrdiff_t c, Some some, const Sums& all, const Found& found) {
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

    template <class Some>
    bool means(Some some) {
        Ahead<T> ahead(p, v, n, after, count);
        each_part(n, count, some, [&](const Part& part, ptrdiff_t c, ptrdiff_t s) { add(part, c, s, some, ahead); });
        bool good = true;
        for (ptrdiff_t c = 0, s = 0; c < count; c += some, ++s)
            good &= put_strip(std::min<ptrdiff_t>(c, count - some), some, whole_sums[s], found[s]);
        return good;
    }

    bool means() { return count >= strip ? means(std::integral_constant<ptrdiff_t, strip>()) : means(count); }

    template <Function>
    void products(T* y) {
        const Work *of_v = sum, *rest = sum_low, *peaks = of_peak;
        each_element<strip>(p, v, y, n, after, count, [=](Work p_i, Work v_i, ptrdiff_t i) __attribute__((always_inline)) {
            Work plain = less_share<Work>(p_i, v_i, of_v[i], rest[i]);
            return p_i > peak<Work> ? peaks[i] : plain;
        });
    }
};

}  // namespace
