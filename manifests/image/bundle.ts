import { cpSync, existsSync, mkdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'

const root = join(import.meta.dirname, '..', '..')

/** Programs of the image, by the name of their file in /edgemesh. */
const programs = {
  sidecar: 'sidecar/main.ts',
  'probe-child': 'sidecar/interception/probe-child.ts',
  'pump-worker': 'sidecar/shared/pump/worker.ts',
  'express-worker': 'sidecar/express/worker.ts',
  server: 'server/main.ts',
  'handshake-worker': 'server/tls/worker.ts',
  injector: 'injector/main.ts',
  cli: 'injector/cli/main.ts',
}

/** Loaded as they are: koffi finds its native part beside itself. */
const unbundled = ['koffi', join('@koromix', `koffi-linux-${process.arch}`)]

/** Bundles the programs into `folder`; what is imported lazily stays in files of its own, so start-up reads little. */
export async function bundle(folder: string): Promise<void> {
  const present = Object.entries(programs).filter(([, source]) => existsSync(join(root, source)))
  await build({
    entryPoints: present.map(([out, source]) => ({ in: join(root, source), out })),
    outdir: folder,
    bundle: true,
    splitting: true,
    platform: 'node',
    format: 'esm',
    target: 'node24',
    external: ['koffi'],
    chunkNames: 'part-[hash]',
    minifySyntax: true,
    minifyWhitespace: true,
    legalComments: 'linked',
    logLevel: 'warning',
    // CommonJS packages within call require() for Node's own modules.
    banner: {
      js: "import { createRequire as edgemeshRequire } from 'node:module'; const require = edgemeshRequire(import.meta.url);",
    },
  })
  for (const name of unbundled) {
    const target = join(folder, 'node_modules', name)
    mkdirSync(target, { recursive: true })
    cpSync(join(root, 'node_modules', name), target, { recursive: true, filter: isRuntime })
  }
}

/** Of koffi: its JavaScript and the library for this machine, not its sources and documentation. */
function isRuntime(path: string): boolean {
  const inside = path.slice(path.lastIndexOf('node_modules'))
  if (/\/(doc|vendor|lib|musl_\w+)(\/|$)/.test(inside)) return false
  return statSync(path).isDirectory() || /\.(js|cjs|json|node|txt)$/.test(inside)
}
