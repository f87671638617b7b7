import { defineConfig } from 'vitest/config';

// Two test files at a time, each in a process of its own (the addon's threads, a crash and peak memory stay with the file
// that caused them), and half of the processors for each.
const workers = 2;

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: workers,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    teardownTimeout: 30_000,
    env: {
      OMP_NUM_THREADS: process.env['OMP_NUM_THREADS'] ?? '1',
      MKL_NUM_THREADS: process.env['MKL_NUM_THREADS'] ?? '1',
    },
    passWithNoTests: false,
  },
});
