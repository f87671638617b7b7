/** This package's version, and the packages that load at their first use: an import must not pay for what a program never does. */
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);

/**
 * The package `name`, loaded at the first call; Node keeps it for the others. The caller says what it is:
 *
 * @example
 * import type * as Yaml from 'yaml';
 * const yaml = (): typeof Yaml => requirePackage('yaml') as typeof Yaml;
 * yaml().parse('a: 1');
 */
export function requirePackage(name: string): unknown {
  return require(name);
}

/** The version of this package. */
export function packageVersion(): string {
  return (require('../../package.json') as { version: string }).version;
}
