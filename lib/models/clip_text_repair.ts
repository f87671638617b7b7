/**
 * Cleaning of text before CLIP's tokenizer: what its authors' code gets from ftfy, HTML unescaping and whitespace rules.
 * Written from ftfy's documented behavior (fix_text with its defaults); damaged encodings are repaired where the whole text
 * was UTF-8 read as Latin-1 or Windows-1252, not in ftfy's rarer cases (mixed or other codepages).
 */
import type * as Entities from 'entities';
import { requirePackage } from '../native/packages.js';

const entities = (): typeof Entities => requirePackage('entities') as typeof Entities;

/** Whitespace as Python's str.isspace and \s know it; JavaScript's \s has U+FEFF and lacks U+001C to U+001F and U+0085. */
const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const SPACES = new RegExp(`${SPACE}+`, 'g');
const OUTER_SPACES = new RegExp(`^${SPACE}+|${SPACE}+$`, 'g');

/** Two letters drawn as one (fi, fl, ij, dz, ...): everything that Unicode calls compatible with plain letters there. */
const LIGATURES = /[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]/g;
/** Letters of full or half width, and the ideographic space. */
const WIDTHS = /[\u3000\uff01-\uffef]/g;
const SINGLE_QUOTES = /[\u02bc\u2018-\u201b]/g;
const DOUBLE_QUOTES = /[\u201c-\u201f]/g;
const LINE_BREAKS = /\r\n|[\r\u0085\u2028\u2029]/g;
// eslint-disable-next-line no-control-regex -- these are what is to be removed
const TERMINAL_ESCAPES = /\x1b\[[\d;]*[a-zA-Z]/g;
// eslint-disable-next-line no-control-regex -- as above
const CONTROLS = /[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;
/** Bytes 0x80 to 0x9f: Latin-1 has control characters there and Windows-1252 letters. */
const C1 = /[\x80-\x9f]/g;

/**
 * Windows-1252's characters for the bytes 0x80 to 0x9f; the five that it leaves open stay control characters. Not from
 * TextDecoder: Node 20's takes Latin-1 for Windows-1252.
 */
const WINDOWS_1252 = (
  '\u20ac\x81\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\x8d\u017d\x8f' +
  '\x90\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\x9d\u017e\u0178'
).split('');

/** Windows-1252's character to its byte, for those that are not Latin-1. */
const BYTE_OF = new Map(WINDOWS_1252.map((char, i) => [char, 0x80 + i]));

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Text whose characters are the bytes of UTF-8 read one by one, decoded; or as it is. */
function decodeAgain(text: string): string {
  // Only where there is a lead byte with a continuation: other text cannot be UTF-8 read wrongly.
  if (!/[\xc2-\xf4]/.test(text)) return text;
  const bytes: number[] = [];
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0;
    const byte = BYTE_OF.get(char) ?? (code < 0x100 ? code : -1);
    if (byte < 0) return text;
    bytes.push(byte);
  }
  try {
    return utf8.decode(Uint8Array.from(bytes));
  } catch {
    return text;
  }
}

const compatible = (part: string): string => part.normalize('NFKC');

function repairOnce(line: string, html: boolean): string {
  return (html ? decodeStrict(decodeAgain(line)) : decodeAgain(line))
    .replace(C1, (char) => WINDOWS_1252[char.charCodeAt(0) - 0x80] ?? char)
    .replace(LIGATURES, (char) => (char === '\ufb05' ? '\u017ft' : compatible(char)))
    .replace(WIDTHS, compatible)
    .replace(SINGLE_QUOTES, "'")
    .replace(DOUBLE_QUOTES, '"')
    .replace(LINE_BREAKS, '\n')
    .replace(TERMINAL_ESCAPES, '')
    .replace(CONTROLS, '')
    .normalize('NFC');
}

/** Entities that end in a semicolon. */
function decodeStrict(text: string): string {
  return text.replace(/&#?[0-9A-Za-z]{1,24};/g, unescapeHtml);
}

/**
 * Repairs typographic and damaged text: curly quotes, ligatures, widths, line breaks, control characters, HTML entities
 * (until a line has a '<'), UTF-8 that was read as Latin-1 or Windows-1252.
 */
function repairText(text: string): string {
  let html = true;
  return text
    .replace(/\p{Surrogate}/gu, '\ufffd')
    .split(/(?<=\n)/)
    .map((line) => {
      if (line.includes('<')) html = false;
      let current = line;
      for (;;) {
        const next = repairOnce(current, html);
        if (next === current) return next;
        current = next;
      }
    })
    .join('');
}

/** References by number to what is no character, which Python drops and HTML decoders keep. */
function dropControls(text: string): string {
  return text.replace(/&#(?:x([0-9a-f]+)|([0-9]+));?/gi, (reference, hex?: string, decimal?: string) => {
    const code = hex === undefined ? Number(decimal) : parseInt(hex, 16);
    const isSpace = code >= 9 && code <= 13 && code !== 11;
    const isControl = (code > 0 && code < 32 && !isSpace) || code === 127;
    return isControl || (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe ? '' : reference;
  });
}

const unescapeHtml = (text: string): string => entities().decodeHTML(dropControls(text));

/** Text as CLIP's tokenizer wants it: repaired, HTML unescaped twice, single spaces, lower case. */
export function cleanText(text: string): string {
  const plain = unescapeHtml(unescapeHtml(repairText(text)));
  return plain.replace(SPACES, ' ').replace(OUTER_SPACES, '').toLowerCase();
}
