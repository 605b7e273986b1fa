-- Written by `make install` of the LLM recipes; @NAME@. Changes are kept aside by the next one.
--
-- For Lmod; Environment Modules read the file beside it that has no .lua in its name.

-- Where this file lies now tells where the installation is now; else where it was installed.
local home = myFileName()
for _ = 1, @UP@ do
    home = home:gsub("/+[^/]*$", "")
end
home = home .. @DOWN@
if not isFile(home .. "/bin/llm-run") then
    home = @HOME@
end

whatis("Name: @MODULE@")
whatis("Version: @VERSION_AND_VARIANT@")
whatis("Category: machine learning, language models")
whatis("Description: @WHATIS@")
help([==[
@HELP@
]==])

family("@MODULE@")
@PROPERTY@
if mode() == "load" and not isFile(home .. "/bin/llm-run") then
    LmodError("there is no " .. home .. "/bin/llm-run\n"
        .. "  why: the installation was moved or removed, or this node does not see it\n"
        .. "  fix: an administrator runs make install again, with its new PREFIX and MODULEPATH")
end

@REQUIRED@
prepend_path("PATH", home .. "/bin")
setenv("LLM_HOME", home)
-- pushenv gives a user's own value back when the module is unloaded.
@VARIABLES@
-- Completion is the shell's, not the environment's: programs get none of it.
local shell = myShellName()
if shell == "bash" or shell == "zsh" then
    local file = (home .. "/completions/llm." .. shell):gsub("'", "'\\''")
    execute{cmd = "case $- in *i*) . '" .. file .. "';; esac", modeA = {"load"}}
    execute{cmd = "if typeset -f _llm_forget >/dev/null; then _llm_forget; fi", modeA = {"unload"}}
end
