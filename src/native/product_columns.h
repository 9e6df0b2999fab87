// softmax_vjp and log_softmax_jvp along columns, side by side: each sum in the order of a contiguous row.
#pragma once
#include "half.h"
#include "products.h"

namespace {

// Some elements of a row, to read: in place or, of 16 bits, in `own`.
template <class T, class Work, class Some>
[[gnu::always_inline]] inline const Work* widened(const T* a, Some some, Work* own) {
    if constexpr (sizeof(T) > 2) return a;
    else return widen(a, own, some), own;
}

// All strips of so many rows are added up before those of others are.
constexpr ptrdiff_t tile_rows = 128;

// Arrays of so many bytes are read without asking for them.
constexpr ptrdiff_t unasked = 1 << 19;

// Asks for what is read next, a line of each array at a time, in the order in which it lies in memory: the rows from tile_rows on of
// `count` columns, n elements each, and then those of the next columns, beside them or, where there are none, after them.
template <class T>
struct Ahead {
    const T *p, *v;
    ptrdiff_t after, count, end, next, row, column = 0;
    bool is_near;

    Ahead(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), after(after), count(count), end(n * after), next(count == after ? end : count),
          row(n > tile_rows ? tile_rows * after : next), is_near(n * after * ptrdiff_t{sizeof(T)} <= unasked) {}

    [[gnu::always_inline]] void fetch(ptrdiff_t some) {
        if (is_near) return;
        __builtin_prefetch(p + row + column), __builtin_prefetch(v + row + column);
        if ((column += some) < count) return;
        column = 0, row += after;
        if (row == end) row = next;
    }
};

// Elements [from, end) of a chunk of a column, which is elements [start, start + length) of it.
struct Part {
    ptrdiff_t start, from, end, length;
};

// visit(part, c, s) for each part of each strip s of columns, which begins at c; the last one may have some of those before it.
template <class Some, class Visit>
[[gnu::always_inline]] inline void each_part(ptrdiff_t n, ptrdiff_t count, Some some, Visit visit) {
    for (ptrdiff_t start = 0; start < n; start += chunk) {
        ptrdiff_t length = std::min(chunk, n - start);
        for (ptrdiff_t from = 0; from < length; from += tile_rows)
            for (ptrdiff_t c = 0, s = 0; c < count; c += some, ++s)
                visit(Part{start, from, std::min(from + tile_rows, length), length}, std::min<ptrdiff_t>(c, count - some), s);
    }
}

// Adds the sums of a chunk to those of all; not to 0: an infinite sum of some that are would become NaN.
template <class Sums>
[[gnu::always_inline]] inline void put_chunk(const Part& part, Sums& all, const Sums& sums) {
    if (part.start == 0) all = sums;
    else all.add_chunk(sums);
}

// Adds a part of a strip to the sums of its lanes, the last one of a chunk also to `all`, by add(j, sums): in the order of a row,
// some lanes at a time in registers.
template <class Sums, class Add>
[[gnu::always_inline]] inline void add_part(const Part& part, Sums* of, Sums& all, Add add) {
    ptrdiff_t from = part.from, length = part.length, whole = length / lanes * lanes, end = std::min(part.end, whole);
    bool is_last = part.end == length;
    auto set = [&](Sums& to, ptrdiff_t l) __attribute__((always_inline)) {
        if (from == 0) to.clear();
        else to = of[l];
        for (ptrdiff_t j = from + l; j < end; j += lanes) add(j, to);
        if (!is_last) return;
        if (ptrdiff_t last = l + length - lanes; last >= whole) add(last, to);
    };
    if (!is_last) {
        for (ptrdiff_t l = 0; l < lanes; ++l) {
            Sums to;
            set(to, l);
            of[l] = to;
        }
        return;
    }
    Sums both[2];
    for (ptrdiff_t group = 0; group < 4; ++group) {
        ptrdiff_t l = group % 2 * 2 + group / 2;
        Sums a, b, c;
        set(a, l), set(b, l + 8), a.add(b);
        set(b, l + 4), set(c, l + 12), b.add(c), a.add(b);
        if (group % 2 == 0) both[group / 2] = a;
        else both[group / 2].add(a);
    }
    both[0].add(both[1]);
    put_chunk(part, all, both[0]);
}

// The same sums of `lanes` elements or more, but less than twice as many: lanes have one or two, and only pairs of them are kept.
template <class Sums, class Add>
[[gnu::always_inline]] inline Sums sum_of_pairs(ptrdiff_t length, Add add) {
    constexpr ptrdiff_t half = lanes / 2;
    Sums pairs[half];
    for (ptrdiff_t l = 0; l < half; ++l) {
        ptrdiff_t more = l + length - lanes;
        Sums a, b;
        a.clear(), b.clear();
        add(l, a), add(l + half, b);
        if (more >= lanes) add(more, a);
        if (more >= half) add(more + half, b);
        a.add(b);
        pairs[l] = a;
    }
    for (ptrdiff_t width = half / 2; width > 0; width /= 2)
        for (ptrdiff_t l = 0; l < width; ++l) pairs[l].add(pairs[l + width]);
    return pairs[0];
}

// And of a few, in four parts, as in_turn has them.
template <class Sums, class Add>
[[gnu::always_inline]] inline Sums sum_in_turn(ptrdiff_t length, Add add) {
    ptrdiff_t parts = length < 4 ? 1 : 4, whole = length / parts * parts;
    auto set = [&](Sums& to, ptrdiff_t l) __attribute__((always_inline)) {
        to.clear();
        for (ptrdiff_t j = l; j < whole; j += parts) add(j, to);
    };
    Sums a, b, c;
    set(a, 0);
    for (ptrdiff_t j = whole; j < length; ++j) add(j, a);
    if (parts == 4) set(b, 1), a.add(b), set(b, 2), set(c, 3), b.add(c), a.add(b);
    return a;
}

// y = of(p, v, column) of all elements, with what comes next asked for.
template <ptrdiff_t strip, class T, class Function>
[[gnu::always_inline]] inline void each_element(const T* p, const T* v, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count, Function of) {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    auto put = [=](ptrdiff_t at, ptrdiff_t c, auto some) __attribute__((always_inline)) {
        Work p_own[strip], v_own[strip], y_own[strip], *y_j = y_own;
        __builtin_prefetch(p + at + after), __builtin_prefetch(v + at + after), __builtin_prefetch(y + at + after, 1);
        const Work *p_j = widened(p + at, some, p_own), *v_j = widened(v + at, some, v_own);
        if constexpr (sizeof(T) > 2) y_j = y + at;
#pragma omp simd
        for (ptrdiff_t i = 0; i < ptrdiff_t(some); ++i) y_j[i] = of(p_j[i], v_j[i], c + i);
        if constexpr (sizeof(T) == 2) narrow(y_j, y + at, some);
    };
    for (ptrdiff_t j = 0; j < n; ++j) {
        ptrdiff_t c = 0;
        for (; c + strip <= count; c += strip) put(j * after + c, c, std::integral_constant<ptrdiff_t, strip>());
        if (c < count) put(j * after + c, c, count - c);
    }
}

// Computed as float32: see fast_row. The sums of a strip of columns at a time.
template <class T>
struct ProductColumns {
    static constexpr ptrdiff_t width = 256, strip = 16;
    static ptrdiff_t at_a_time(ptrdiff_t) { return width; }

    struct Sums {
        double sum[strip], weight[strip];
        [[gnu::always_inline]] void clear() {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) sum[i] = weight[i] = 0;
        }
        [[gnu::always_inline]] void add(const Sums& more) {
#pragma omp simd
            for (ptrdiff_t i = 0; i < strip; ++i) sum[i] += more.sum[i], weight[i] += more.weight[i];
        }
        [[gnu::always_inline]] void add_chunk(const Sums& more) { add(more); }
    };
    const T *p, *v;
    ptrdiff_t n, after, count;  // count <= width columns of n elements, `after` apart
    alignas(64) Sums chunk_sums[width / strip][lanes], whole_sums[width / strip];
    alignas(64) double sum[width], weight[width], v_r[width], mean[width];
    alignas(64) float c[width], rest[width];

    ProductColumns(const T* p, const T* v, ptrdiff_t n, ptrdiff_t after, ptrdiff_t count)
        : p(p), v(v), n(n), after(after), count(count) {}

    // Of each column the v of the first element that is not negligible.
    void references() {
        int32_t found[width] = {}, all = 0;
        float p_own[width], v_own[width];
        for (ptrdiff_t j = 0; j < n && !all; ++j) {
            fetch<false>(p + (j + 1) * after, count), fetch<false>(v + (j + 1) * after, count);
            const float *p_j = widened(p + j * after, count, p_own), *v_j = widened(v + j * after, count, v_own);
            double* reference = v_r;
            all = -1;
#pragma omp simd reduction(& : all)
            for (ptrdiff_t i = 0; i < count; ++i) {
                reference[i] = found[i] ? reference[i] : v_j[i];
                found[i] |= p_j[i] >= negligible ? -1 : 0;
                all &= found[i];
            }
        }
    }

    // As `weighted` adds them up.
    template <class Some>
    [[gnu::always_inline]] void add(const Part& part, ptrdiff_t c, ptrdiff_t s, Some some, Ahead<T>& ahead) {
        const T *p_0 = p + part.start * after + c, *v_0 = v + part.start * after + c;
        ptrdiff_t next = after, length = part.length;
        double reference[strip];
        std::copy_n(v_r + c, strip, reference);
        auto add = [&](ptrdiff_t j, Sums& to) __attribute__((always_inline)) {
            float p_own[strip], v_own[strip];
            ahead.fetch(strip);
            const float *p_j = widened(p_0 + j * next, some, p_own), *v_j = widened(v_0 + j * next, some, v_own);
#pragma omp simd
            for (ptrdiff_t i = 0; i < ptrdiff_t(some); ++i) {
                double p_i = p_j[i];
                to.sum[i] = fma(p_i, v_j[i] - reference[i], to.sum[i]);
                to.weight[i] += p_i;
            }
        };
        if (length >= 2 * lanes) add_part(part, chunk_sums[s], whole_sums[s], add);
        else put_chunk(part, whole_sums[s], length > few ? sum_of_pairs<Sums>(length, add) : sum_in_turn<Sums>(length, add));
    }

    template <class Some>
    void add_all(Some some) {
        Ahead<T> ahead(p, v, n, after, count);
        each_part(n, count, some, [&](const Part& part, ptrdiff_t c, ptrdiff_t s) { add(part, c, s, some, ahead); });
        for (ptrdiff_t c = 0, s = 0; c < count; c += some, ++s) {
            ptrdiff_t first = std::min<ptrdiff_t>(c, count - some);
            std::copy_n(whole_sums[s].sum, ptrdiff_t(some), sum + first), std::copy_n(whole_sums[s].weight, ptrdiff_t(some), weight + first);
        }
    }

    int64_t means_of_any() {
        int64_t finite = 1;
        for (ptrdiff_t i = 0; i < count; ++i) {
            mean[i] = mean_of({sum[i], weight[i]});
            finite &= std::isfinite(mean[i]);
        }
        return finite;
    }

    // False where the mean of a column is not finite. (Not inlined: the same for two functions.)
    [[gnu::noinline]] bool means() {
        references();
        if (count >= strip) add_all(std::integral_constant<ptrdiff_t, strip>());
        else add_all(count);
        double *of = mean, *v = v_r, *s = sum, *w = weight;
        int64_t finite = 1, near_1 = 1;
#pragma omp simd reduction(& : near_1, finite)
        for (ptrdiff_t i = 0; i < count; ++i) {
            of[i] = mean_near_1(s[i], w[i]);
            near_1 &= is_near_1(w[i]) ? 1 : 0;
            finite &= of[i] - of[i] == 0 ? 1 : 0;
        }
        if (!near_1) finite = means_of_any();
        if (n <= few) return finite != 0;
        float *high = c, *low = rest;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) put(high[i], low[i], v[i], of[i]);
        return finite != 0;
    }

    template <Function function, class Work>
    void products(T* y, const Work* less, const Work* and_less) {
        each_element<strip>(p, v, y, n, after, count, [=](float p_i, float v_i, ptrdiff_t i) __attribute__((always_inline)) {
            return product_of<function>(p_i, v_i - less[i], and_less[i]);
        });
    }

    template <Function function>
    void products(T* y) {
        n <= few ? products<function>(y, v_r, mean) : products<function>(y, c, rest);
    }
};

}  // namespace
