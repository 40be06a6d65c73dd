// `npm run image`: builds the image as an OCI archive, without a container daemon and without a base image.
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { version } from '#shared/version.ts'
import { bundle } from './bundle.ts'
import { writeArchive } from './oci.ts'
import { makeSystem, unpackDebian } from './root-fs.ts'

const root = join(import.meta.dirname, '..', '..')
const architectures: Record<string, string> = { x64: 'amd64', arm64: 'arm64' }

interface Options {
  name: string
  output: string
  rootFs?: string
  json: boolean
}

async function buildImage({ name, output, rootFs, json }: Options): Promise<void> {
  const say = (line: string) => process.stderr.write(`${line}\n`)
  const work = mkdtempSync(join(tmpdir(), 'edgemesh-image-'))
  try {
    const unpacked = join(root, '.cache', 'image')
    if (!existsSync(join(unpacked, 'all'))) {
      say('Fetching the Debian packages ...')
      rmSync(unpacked, { recursive: true, force: true })
      mkdirSync(unpacked, { recursive: true })
      unpackDebian(unpacked)
    }
    say('Bundling the programs ...')
    const [system, programs] = [join(work, 'system'), join(work, 'programs')]
    makeSystem(unpacked, system, join(root, 'node_modules', 'node', 'bin', 'node'))
    await bundle(join(programs, 'edgemesh'))
    mkdirSync(join(programs, 'usr/local/bin'), { recursive: true })
    if (existsSync(join(programs, 'edgemesh/cli.js'))) {
      chmodSync(join(programs, 'edgemesh/cli.js'), 0o755)
      symlinkSync('/edgemesh/cli.js', join(programs, 'usr/local/bin/edgemesh'))
    }
    if (rootFs !== undefined) {
      for (const layer of [system, programs])
        cpSync(layer, resolve(rootFs), { recursive: true, verbatimSymlinks: true })
      return
    }
    say('Writing the archive ...')
    const path = resolve(output)
    writeArchive(
      [system, programs],
      {
        name,
        architecture: architectures[process.arch] ?? process.arch,
        config: {
          User: '1337:1337',
          Env: ['PATH=/usr/local/bin:/usr/sbin:/usr/bin', 'NODE_ENV=production'],
          Entrypoint: ['node', '/edgemesh/cli.js'],
          WorkingDir: '/',
          Labels: {
            'org.opencontainers.image.title': 'edgemesh-sidecar',
            'org.opencontainers.image.version': version,
            'org.opencontainers.image.licenses': 'Apache-2.0',
          },
        },
      },
      work,
      path,
    )
    const bytes = statSync(path).size
    if (json) console.log(JSON.stringify({ name, path, bytes }))
    else console.log(`${path} (${name}, ${(bytes / 1e6).toFixed(1)} MB)`)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

try {
  await new Command('npm run image --')
    .description('Builds the image of all programs as an OCI archive.')
    .option('--name <name>', 'registry/name:tag of the image', `edgemesh/edgemesh-sidecar:${version}`)
    .option('--output <file>', 'where to write the archive', 'edgemesh-sidecar.tar')
    .option('--root-fs <folder>', 'puts the files of the image there instead; the Containerfile does')
    .option('--json', 'prints one JSON object', false)
    .allowExcessArguments(false)
    .action(buildImage)
    .parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}
