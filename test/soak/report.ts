import type { Row, Traffic } from './verdict.ts'

export interface Result {
  minutes: number
  seed: number
  churn: boolean
  rows: Row[]
  traffic: Map<string, Traffic>
  /** Connections by the route that they went. */
  routes: Record<string, number>
  /** What fails the soak, as sentences. */
  wrong: string[]
}

/** For people a table, for scripts one JSON object. */
export function report(result: Result, json: boolean): string {
  if (json)
    return JSON.stringify({
      ...result,
      traffic: Object.fromEntries(result.traffic),
      pass: result.wrong.length === 0,
    })
  const { minutes, rows, traffic, routes, wrong } = result
  const done = [...traffic].map(([name, { good, failed }]) => {
    const kinds = Object.entries(good).map(([kind, n]) => `${n} ${kind}`)
    return `  ${name}: ${kinds.join(', ')}; ${failed} failed`
  })
  const ways = Object.entries(routes).map(([route, n]) => `${n} ${route}`)
  return [
    '',
    line(['', '', 'before', 'first', 'middle', 'last', 'after', 'per min']),
    ...rows.filter((r) => r.figure !== 'pump' || r.last > 0 || r.wrong !== undefined).map(rowLine),
    '',
    ...done,
    `  connections of a by route: ${ways.join(', ')}`,
    '',
    ...(wrong.length === 0
      ? [`  PASS: ${minutes} min of traffic left nothing behind`]
      : wrong.map((why) => `  FAIL: ${why}`)),
  ].join('\n')
}

function rowLine({ part, figure, unit, before, first, middle, last, after, slope, wrong }: Row): string {
  const show = (value: number) =>
    unit === 'kB' ? `${(value / 1_024).toFixed(1)} MB` : String(Math.round(value))
  const perMinute = unit === 'kB' ? `${Math.round(slope)} kB` : slope.toFixed(1)
  const cells = [before, first, middle, last, after].map(show)
  return `${line([part, figure, ...cells, perMinute])}${wrong === undefined ? '' : `  ${wrong}`}`
}

function line([part = '', figure = '', ...cells]: readonly string[]): string {
  return `  ${part.padEnd(14)} ${figure.padEnd(11)} ${cells.map((c) => c.padStart(9)).join(' ')}`
}
