# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# Completion of merchant-sessions.fcgi for bash: options as --help lists them, and files after --listen.
# To be sourced, or installed where bash-completion finds it by its name.
_merchant_sessions() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} help
    help=$("${1/#\~/$HOME}" --help 2>/dev/null)
    COMPREPLY=()
    if [[ $before == @(-l|--listen) ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    # Nothing after an option that has a value, which help shows in capitals.
    elif [[ $before != -* ]] || ! grep -qE -- "$before(, --[a-z-]+)? [A-Z]" <<<"$help"; then
        mapfile -t COMPREPLY < <(compgen -W "$(grep -oE -- '--[a-z-]+' <<<"$help")" -- "$word")
    fi
}
complete -o filenames -F _merchant_sessions merchant-sessions.fcgi
