/**
 * Calls what may fail without it being our failure: the page's own functions, storage that is blocked, a stray "%".
 * Undefined if it did.
 */
export function attempt<Result>(call: () => Result): Result | undefined {
  try {
    return call();
  } catch {}
}
