const colours = process.stdout.isTTY && process.env.NO_COLOR === undefined

const paint = (code: string) => (text: string) => (colours ? `\x1b[${code}m${text}\x1b[0m` : text)

export const bold = paint('1')
export const dim = paint('2')
export const red = paint('31')
export const green = paint('32')
export const yellow = paint('33')
export const cyan = paint('36')

/** A route in its colour. */
export function paintRoute(route: string, width = 0): string {
  const colour = { direct: green, punched: cyan, relayed: yellow }[route] ?? red
  return colour(route.padEnd(width))
}
