// softmax_vjp and log_softmax_jvp of rows of two elements: in the arithmetic of longer ones, but at once, some rows side by side.
#pragma once
#include "gathered.h"
#include "products.h"

namespace {

template <Function function, class T>
struct Pairs {
    using Work = std::conditional_t<sizeof(T) == 8, double, float>;
    static constexpr ptrdiff_t width = 64;
    const Work *p_0, *p_1, *v_0, *v_1;
    alignas(64) Work y_0[width], y_1[width], own[4][width];

    // Rows side by side, the second elements `after` behind the first; or, with 1, one row after the other. y may be p or v.
    void operator()(const T* p, const T* v, T* y, ptrdiff_t after, ptrdiff_t count) {
        for (ptrdiff_t i = 0, some; i < count; i += some) {
            some = std::min(width, count - i);
            ptrdiff_t at = after > 1 ? i : 2 * i;
            read(p + at, p_0, p_1, own[0], own[1], after, some);
            read(v + at, v_0, v_1, own[2], own[3], after, some);
            if (!products(0, some)) one_by_one(some);
            write(y + at, after, some);
        }
    }

private:
    // The first and the second elements: where they are, or in rows of their own.
    static void read(const T* x, const Work*& x_0, const Work*& x_1, Work* own_0, Work* own_1, ptrdiff_t after, ptrdiff_t count) {
        fetch<false>(x + block, count);
        fetch<false>(x + after + block, count);
        x_0 = own_0, x_1 = own_1;
        if (after == 1) {
            Work converted[2 * width];
            const Work* both = converted;
            if constexpr (sizeof(T) == 2) widen(x, converted, 2 * count);
            else both = x;
#pragma omp simd
            for (ptrdiff_t i = 0; i < count; ++i) own_0[i] = both[2 * i], own_1[i] = both[2 * i + 1];
        } else if constexpr (sizeof(T) == 2) {
            widen(x, own_0, count);
            widen(x + after, own_1, count);
        } else {
            x_0 = x, x_1 = x + after;
        }
    }

    void write(T* y, ptrdiff_t after, ptrdiff_t count) {
        Work both[2 * width], *to = both;
        fetch<true>(y + block, count);
        fetch<true>(y + after + block, count);
        if (after > 1) return convert(y_0, y, count), convert(y_1, y + after, count);
        if constexpr (sizeof(T) > 2) to = y;
        const Work *y0 = y_0, *y1 = y_1;
#pragma omp simd
        for (ptrdiff_t i = 0; i < count; ++i) to[2 * i] = y0[i], to[2 * i + 1] = y1[i];
        if constexpr (sizeof(T) == 2) narrow(both, y, 2 * count);
    }

    // False where a mean is not finite, or (float32) a weight not near 1, or (float64) no element counts. See ProductColumns.
    bool products(ptrdiff_t from, ptrdiff_t count) {
        const Work *p0 = p_0, *p1 = p_1, *v0 = v_0, *v1 = v_1;
        Work *y0 = y_0, *y1 = y_1;
        std::make_signed_t<typename Format<Work>::Bits> good = 1;
#pragma omp simd reduction(& : good)
        for (ptrdiff_t i = from; i < from + count; ++i) {
            double a = p0[i], b = p1[i], mean;
            bool is_first = sizeof(T) == 8 ? !(b > a) : a >= negligible, counts;
            double reference = is_first ? v0[i] : v1[i], d_0 = v0[i] - reference, d_1 = v1[i] - reference;
            if constexpr (sizeof(T) == 8) {
                mean = is_first ? b * d_1 : a * d_0;
                counts = (is_first ? a : b) > 0;
            } else {
                mean = mean_near_1(fma(b, d_1, a * d_0), a + b);
                counts = is_near_1(a + b);
            }
            y0[i] = product_of<function>(p0[i], d_0 - mean);
            y1[i] = product_of<function>(p1[i], d_1 - mean);
            good &= (counts ? 1 : 0) & (mean - mean == 0 ? 1 : 0);
        }
        return good != 0;
    }

    void one_by_one(ptrdiff_t count) {
        for (ptrdiff_t i = 0; i < count; ++i) {
            if (products(i, 1)) continue;
            Work p[] = {p_0[i], p_1[i]}, v[] = {v_0[i], v_1[i]}, y[2];
            if constexpr (sizeof(T) == 8) product_with_jacobian<function, double>(p, v, y, 2, 1, nullptr);
            else short_products<function>(p, v, y, 2, 1);
            y_0[i] = y[0], y_1[i] = y[1];
        }
    }
};

}  // namespace
