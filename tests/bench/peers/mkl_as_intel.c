/* mkl_as_intel.c - preloaded, lets the MKL inside PyTorch use on any CPU the code it keeps for
 * Intel's: faster products in f32 on an AMD CPU with AVX-512. Without it PyTorch's
 * f32 figures there are MKL's choice, not PyTorch's. */
int mkl_serv_intel_cpu_true(void);
int mkl_serv_intel_cpu(void);
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
