// The eigenvalues of diag(p) - p p^T from its secular equation. Since p sums to 1, that is x f(x) = 0 with f(x) =
// sum(p / (p - x)): one eigenvalue is 0; f rises from -inf to inf between neighbouring p, where one lies each.
#pragma once
#include "sums.h"

namespace {

// A part of f and of unit * f'.
struct Secular {
    double value, slope;
};

[[gnu::always_inline]] inline void add_pole(double& value, double& slope, double p, double x, double unit) {
    double inverse = 1 / (p - x), term = p * inverse;
    value += term, slope += term * (unit * inverse);
}

inline Secular secular_sum(const double* p, ptrdiff_t n, double x, double unit) {
    Secular sum{0, 0};
    ptrdiff_t i = 0;
    if (n >= lanes) {
        double value[lanes] = {}, slope[lanes] = {};
        for (; i + lanes <= n; i += lanes) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) add_pole(value[l], slope[l], p[i + l], x, unit);
        }
        for (ptrdiff_t l = 0; l < lanes; ++l) sum.value += value[l], sum.slope += slope[l];
    }
    for (; i < n; ++i) add_pole(sum.value, sum.slope, p[i], x, unit);
    return sum;
}

// The root between p[i] and p[i + 1], by rational interpolation: the terms with poles up to p[i] are taken as r + s / (p[i] -
// x), the others likewise, with the values and slopes they have (Bunch, Nielsen and Sorensen, 1978). A step out of the interval
// that is known to hold the root is replaced by halving it. Lengths are in units of p[i + 1], lest they underflow.
inline double root_between(const double* p, ptrdiff_t n, ptrdiff_t i) {
    constexpr double eps = std::numeric_limits<double>::epsilon();
    double a = p[i], b = p[i + 1], low = a, high = b, x = a + (b - a) / 2;
    for (int iteration = 1; high - low > eps * high; ++iteration) {
        Secular below = secular_sum(p, i + 1, x, b), above = secular_sum(p + i + 1, n - i - 1, x, b);
        double f = below.value + above.value;
        if (f == 0) return x;
        (f < 0 ? low : high) = x;
        double to_a = (a - x) / b, to_b = (b - x) / b;
        double s_a = below.slope * to_a, s_b = above.slope * to_b, c = f - s_a - s_b;
        double linear = c * (to_a + to_b) + s_a * to_a + s_b * to_b, constant = f * to_a * to_b;
        double root = std::sqrt(std::max(linear * linear - 4 * c * constant, 0.0));
        double next = x + b * (linear > 0 ? 2 * constant / (linear + root) : (linear - root) / (2 * c));
        bool halve = !(next > low && next < high) || iteration % 8 == 0;  // now and then in any case: it ends
        if (halve) next = low + (high - low) / 2;
        else if (std::abs(next - x) <= eps * next) return next;
        x = next;
    }
    return x;
}

// Of sorted p, in ascending order.
inline void eigenvalues(const double* p, double* y, ptrdiff_t n, int threads) {
    if (std::isnan(p[n - 1])) {  // it sorts last
        std::fill_n(y, n, p[n - 1]);
        return;
    }
    y[0] = 0;
    each(n - 1, threads, [=](ptrdiff_t i) { y[i + 1] = p[i] > 0 && p[i] < p[i + 1] ? root_between(p, n, i) : p[i]; });
}

}  // namespace
