/** When bulk is handed to the pump: `auto` when it proves to be bulk; the others are for tests and for doubts. */
export const fastPathModes = ['auto', 'always', 'never', 'random'] as const
export type FastPathMode = (typeof fastPathModes)[number]

/** Of `random`: the pump takes over somewhere in the first bytes. */
const randomBytes = 3 * 1024 * 1024

/** How many bytes in one go are bulk; undefined is the splice's own judgement. */
export function bulkBytesOf(mode: FastPathMode, random = Math.random): number | undefined {
  switch (mode) {
    case 'auto':
      return undefined
    case 'always':
      return 1
    case 'never':
      return Number.POSITIVE_INFINITY
    case 'random':
      return 1 + Math.floor(random() * randomBytes)
  }
}
