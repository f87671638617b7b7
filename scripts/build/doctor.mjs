/** `npm run doctor`: what `torchgraft doctor` prints, also on a fresh clone where nothing is compiled yet. */
import { checkEnvironment, formatEnvironment } from './environment.mjs';

const report = checkEnvironment();
console.log(process.argv.includes('--json') ? JSON.stringify(report, null, 2) : formatEnvironment(report));
process.exitCode = report.ok ? 0 : 1;
