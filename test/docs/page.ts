/**
 * The code in a Markdown page as programs that run.
 *
 * JavaScript blocks of a page are one program, in their order; shell blocks run `torchgraft` where they stand in it. HTML
 * comments, which readers do not see, say what tests need besides:
 *
 *     <!-- test
 *     code that runs here
 *     -->
 *     <!-- test: another program -->         what follows starts anew
 *     <!-- test: replace resnet50 with X --> in everything that follows
 *     <!-- not run: reason -->               the next block is passed over
 */

/** A program of a page. */
export interface Program {
  /** Line of its first block. */
  readonly line: number;
  readonly code: string;
}

/** What a page asks to run. */
export interface Page {
  readonly programs: readonly Program[];
  /** Why blocks are passed over. */
  readonly notRun: readonly string[];
}

/** Languages that are text, not code. */
const plain = new Set(['text', 'json']);

/** The command line in shell blocks, and what stands for it: the program `sh` of the test. */
const command = /^npx torchgraft( .*)$/;

/** @throws Error for a block that nobody runs: of an unknown language, or a shell command that is not ours */
export function readPage(text: string): Page {
  const programs: { line: number; code: string[] }[] = [];
  const notRun: string[] = [];
  const replacements: [string, string][] = [];
  let skip: string | null = null;
  let anew = true;
  const add = (line: number, code: string): void => {
    if (anew) programs.push({ line, code: [] });
    anew = false;
    programs.at(-1)?.code.push(replacements.reduce((done, [from, to]) => done.replaceAll(from, to), code));
  };
  const lineAt = (index: number): number => text.slice(0, index).split('\n').length;
  const pattern = /^```(\w*)[^\n]*\n(.*?)^```$|^<!-- (test|not run)(:?)\s(.*?)-->/gms;
  for (const match of text.matchAll(pattern)) {
    const [, language, block = '', kind, colon, comment = ''] = match;
    const line = lineAt(match.index);
    if (kind === 'not run') {
      skip = comment.trim();
    } else if (kind === 'test' && colon === '') {
      add(line, comment);
    } else if (kind === 'test') {
      const [, from, to] = /^replace (\S+) with (\S+)/.exec(comment) ?? [];
      if (from !== undefined && to !== undefined) replacements.push([from, to]);
      else if (comment.trim() === 'another program') anew = true;
      else throw new Error(`line ${line}: nobody knows <!-- test: ${comment}-->`);
    } else if (skip !== null) {
      notRun.push(skip);
      skip = null;
    } else if (language === 'js') {
      add(line, block);
    } else if (language === 'sh') {
      for (const typed of block.replaceAll('\\\n', ' ').split('\n')) {
        const words = typed.replace(/ +#.*$/, '').trim();
        if (words === '' || words.startsWith('#')) continue;
        const [, args] = command.exec(words) ?? [];
        if (args === undefined)
          throw new Error(`line ${line}: '${words}' is no torchgraft command; say why it is not run`);
        add(line, `sh(${JSON.stringify(args.trim().split(/\s+/))});`);
      }
    } else if (!plain.has(language ?? '')) {
      throw new Error(`line ${line}: a block in '${language}' that nobody runs`);
    }
  }
  return { programs: programs.map(({ line, code }) => ({ line, code: code.join('\n') })), notRun };
}
