#%Module1.0
# Written by `make install` of the LLM recipes; @NAME@. Changes are kept aside by the next one.
#
# For Environment Modules, and for Lmod where the Lua file beside it is missing.

# Where this file lies now tells where the installation is now; else where it was installed.
set home @HOME_FROM_HERE@
if {![file exists $home/bin/llm-run]} {
    set home @HOME@
}

module-whatis {@WHATIS@}

proc ModulesHelp {} {
    puts stderr {@HELP@}
}

conflict @MODULE@

if {[module-info mode load] && ![file exists $home/bin/llm-run]} {
    puts stderr "@NAME@: there is no $home/bin/llm-run"
    puts stderr "  why: the installation was moved or removed, or this node does not see it"
    puts stderr "  fix: an administrator runs make install again, with its new PREFIX and MODULEPATH"
    break
}

foreach name [list @REQUIRED@] {
    if {[info commands depends-on] ne ""} {
        depends-on $name
    } else {
        module load $name
    }
}

prepend-path PATH $home/bin
setenv LLM_HOME $home
# pushenv gives a user's own value back when the module is unloaded. Not from Tcl in Lmod, whose
# built-in Tcl has changed the variable when the old value is looked up (seen with 8.6.19).
set change pushenv
if {[info commands pushenv] eq "" || ([info exists ModuleTool] && $ModuleTool eq "Lmod")} {
    set change setenv
}
foreach {name value} [list @VARIABLES@] {
    $change $name $value
}

# Completion is the shell's, not the environment's: programs get none of it.
set shell [module-info shell]
if {$shell eq "bash" || $shell eq "zsh"} {
    if {[module-info mode load] || [module-info mode refresh]} {
        set file [string map {' '\\''} $home/completions/llm.$shell]
        puts stdout "case \$- in *i*) . '$file';; esac;"
    } elseif {[module-info mode unload] || [module-info mode remove]} {
        puts stdout "if typeset -f _llm_forget >/dev/null; then _llm_forget; fi;"
    }
}
