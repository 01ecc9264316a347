/* The end of the backward pass: partial sums over blocks of observations become the gradient of the parameters. */
#include "walk.h"

void lnorm_add_partial(const lnorm_job *job, ptrdiff_t begin, ptrdiff_t end, const double *partial, double *total,
                       ptrdiff_t size, ptrdiff_t base)
{
    lnorm_steps steps;
    lnorm_steps_to(&steps, job, &job->op[LNORM_GRAD], begin);
    for (ptrdiff_t j = 0; j < end - begin; j++, lnorm_steps_on(&steps)) {
        double *sum = total + (steps.at - base), a = *sum, b = partial[j], t = a + b, z = t - a;
        sum[0] = t;
        sum[size] += (a - (t - z)) + (b - z);
    }
}
