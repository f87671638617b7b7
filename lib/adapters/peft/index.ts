/** Exchange of adapters with the Python package peft. */
export { readPeftConfig, type PeftConfig } from './config.js';
export { loadPeft, readPeft, type LoadPeftOptions, type PeftFolder } from './load.js';
export { savePeft, type PeftRemarks, type SavePeftOptions } from './save.js';
