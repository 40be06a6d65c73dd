import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '..')
const parts = ['sidecar', 'server', 'injector'] as const

const files = parts.flatMap((part) =>
  readdirSync(join(root, part), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))
    .map((name) => join(part, name)),
)

/** file -> the project files it imports, as paths from the root. Type imports count: they are coupling too. */
const imports = new Map(
  files.map((file) => {
    const source = readFileSync(join(root, file), 'utf8')
    const specifiers = [...source.matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)].map((m) => m[1] ?? '')
    return [file, specifiers.flatMap((s) => resolveSpecifier(file, s))] as const
  }),
)

function resolveSpecifier(from: string, specifier: string): string[] {
  if (specifier.startsWith('#shared/')) return [join('sidecar/shared', specifier.slice('#shared/'.length))]
  if (!specifier.startsWith('.')) return []
  return [relative(root, normalize(join(root, dirname(from), specifier)))]
}

/** The first import cycle there is, as a path of files; undefined when there is none. */
function findCycle(graph: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const done = new Set<string>()
  const visit = (file: string, path: string[]): string[] | undefined => {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file]
    if (done.has(file)) return undefined
    for (const next of graph.get(file) ?? []) {
      const cycle = visit(next, [...path, file])
      if (cycle !== undefined) return cycle
    }
    done.add(file)
    return undefined
  }
  for (const file of graph.keys()) {
    const cycle = visit(file, [])
    if (cycle !== undefined) return cycle
  }
  return undefined
}

describe('the structure', () => {
  it('sees the sources and their imports', () => {
    expect(imports.get(join('sidecar', 'sidecar.ts'))).toContain('sidecar/tunnel/inbound.ts')
    expect(imports.get(join('server', 'main.ts'))).toContain('sidecar/shared/errors.ts')
  })

  it('has no import cycle', () => {
    expect(findCycle(imports)).toBeUndefined()
  })

  it('finds a cycle where there is one', () => {
    const graph = new Map([
      ['a', ['b']],
      ['b', ['c']],
      ['c', ['b']],
    ])
    expect(findCycle(graph)).toEqual(['b', 'c', 'b'])
  })

  it.each(['server', 'injector'])('lets %s import nothing of the sidecar but what is shared', (part) => {
    const foreign = [...imports]
      .filter(([file]) => file.startsWith(`${part}/`))
      .flatMap(([file, targets]) => targets.map((target) => ({ file, target })))
      .filter(({ target }) => !target.startsWith(`${part}/`) && !target.startsWith('sidecar/shared/'))
    expect(foreign).toEqual([])
  })

  it('lets the sidecar import neither server nor injector nor tests, and shared nothing of the sidecar', () => {
    const foreign = [...imports]
      .filter(([file]) => file.startsWith('sidecar/'))
      .flatMap(([file, targets]) => targets.map((target) => ({ file, target })))
      .filter(({ file, target }) =>
        file.startsWith('sidecar/shared/')
          ? !target.startsWith('sidecar/shared/') && target !== 'package.json'
          : !target.startsWith('sidecar/'),
      )
    expect(foreign).toEqual([])
  })

  it('keeps the top level to what is agreed', () => {
    const agreed =
      /^(package(-lock)?\.json|tsconfig\.json|sidecar|injector|server|manifests|test|README\.md)$/
    const tools =
      /^(LICENSE|ARCHITECTURE\.md|Containerfile|biome\.json|vitest\.config\.ts|\..*|node_modules)$/
    const strangers = readdirSync(root).filter((name) => !agreed.test(name) && !tools.test(name))
    expect(strangers).toEqual([])
  })
})
